"""Views of paramtree for other libraries; each file needs the extra of its name."""
