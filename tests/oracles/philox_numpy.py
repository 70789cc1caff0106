"""Philox 4x32-10 and the layout of keys in NumPy: one block at a time, as the paper writes it."""

import numpy as np

WORD = 0xFFFFFFFF


def philox(counter, key):
    """Four 32-bit words from four and a key of two, all Python integers."""
    c = [int(word) for word in counter]
    k = [int(word) for word in key]
    for round_ in range(10):
        if round_ > 0:
            k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second & WORD,
            (first >> 32) ^ c[3] ^ k[1],
            first & WORD,
        ]
    return c


def halves(number):
    number &= 0xFFFFFFFFFFFFFFFF
    return [number & WORD, number >> 32]


def bits(key, count):
    """The first `count` words that a key draws."""
    seed, offset = (int(part) for part in key)
    blocks = [philox([*halves(offset + i), 0, 0], halves(seed)) for i in range(-(-count // 4))]
    return np.array(blocks, dtype=np.int64).reshape(-1)[:count]


def derive(key, data, kind):
    """The key that data of a kind (1 an integer, 2 a name) gives."""
    seed, offset = (int(part) for part in key)
    words = philox([*halves(offset), *halves(data | kind << 62)], halves(seed))
    return np.array([words[0] | words[1] << 32, words[2] | words[3] << 32], np.uint64).view(
        np.int64
    )


def fnv1a(name):
    """64-bit FNV-1a, its two top bits folded onto the others."""
    value = 14695981039346656037
    for byte in name.encode("utf-8"):
        value = ((value ^ byte) * 1099511628211) % 2**64
    return (value >> 62) ^ (value % 2**62)
