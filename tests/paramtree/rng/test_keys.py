import itertools

import numpy as np
import pytest
import torch
from torch import tensor

from paramtree import rng
from tests.oracles import philox_numpy as oracle

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, words.
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]

KEYS = [
    (0, 0),
    (1, 2**32 - 2),  # the counter carries into its second word
    (-1, -3),  # and wraps
    (-(2**63), 2**63 - 1),
    (6364136223846793005, -1442695040888963407),
]


def words(text):
    return tensor([int(word, 16) for word in text.split()])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    assert torch.equal(rng.philox4x32(words(counter), words(key)), words(expected))


def test_philox_maps_rows_with_shared_and_own_keys():
    counters, keys, expected = (torch.stack([words(row[i]) for row in KNOWN]) for i in range(3))
    assert torch.equal(rng.philox4x32(counters, keys), expected)
    assert torch.equal(rng.philox4x32(counters, keys[0])[0], expected[0])
    assert torch.equal(torch.vmap(rng.philox4x32, (None, 0))(counters[1], keys)[1], expected[1])
    assert torch.equal(torch.vmap(rng.philox4x32, (0, None))(counters, keys[2])[2], expected[2])


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("count", [1, 7, 8, 1003])
def test_bits_are_the_words_of_consecutive_blocks(key, count):
    assert rng.bits(tensor(key), (count,)).tolist() == oracle.bits(key, count).tolist()


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_split_and_fold_in_derive_as_documented(key):
    for count in (3, 40):
        expected = np.stack([oracle.derive(key, i, 1) for i in range(count)])
        assert rng.split(tensor(key), count).tolist() == expected.tolist()
    for data in (0, 5, 2**32, 2**62 - 1):
        expected = oracle.derive(key, data, 1).tolist()
        assert rng.fold_in(tensor(key), data).tolist() == expected
        assert rng.fold_in(tensor(key), tensor(data)).tolist() == expected
        assert rng.fold_in(tensor([key, key]), data)[1].tolist() == expected
    for name in ("", "weight", "größe", "x" * 300):
        expected = oracle.derive(key, oracle.fnv1a(name), 2).tolist()
        assert rng.fold_in(tensor(key), name).tolist() == expected
        assert rng.fold_in(tensor([key, key]), name)[1].tolist() == expected


def test_hash_of_names_is_fnv1a():
    # 64-bit FNV-1a of "" and "foobar", as published with the hash
    for name, published in (("", 0xCBF29CE484222325), ("foobar", 0x85944171F73967E8)):
        assert oracle.fnv1a(name) == published >> 62 ^ published & 2**62 - 1


def test_split_and_fold_in_agree_on_batches():
    keys = rng.split(rng.key(3), 6).view(2, 3, 2)
    derived = rng.split(keys, 5)
    assert derived.shape == (5, 2, 3, 2)
    for i, j, k in itertools.product(range(5), range(2), range(3)):
        assert torch.equal(derived[i, j, k], rng.split(keys[j, k], 5)[i])
    assert torch.equal(rng.fold_in(keys, 4), derived[4])
    assert torch.equal(rng.fold_in(keys, tensor([[4], [1]]))[1, 2], derived[1, 1, 2])
    assert torch.equal(rng.fold_in(keys[0, 0], torch.arange(5)), derived[:, 0, 0])


def test_derived_keys_and_words_are_all_different():
    key = rng.key(0)
    names = [rng.fold_in(key, f"{kind}_{i}") for kind in ("linear", "") for i in range(500)]
    children = rng.split(key, 20_000)
    grandchildren = rng.split(children[:100], 100).flatten(0, 1)
    keys = torch.cat((key[None], torch.stack(names), children, grandchildren))
    assert len({tuple(row) for row in keys.tolist()}) == len(keys)
    # 64-bit words of a draw, and those of keys derived from the same one
    drawn = rng.bits(key, (20_000, 2))
    drawn = drawn[:, 0] | drawn[:, 1] << 32
    assert len({*drawn.tolist(), *keys[1:].flatten().tolist()}) == 20_000 + 2 * (len(keys) - 1)


def test_key_takes_integers_and_tensors_of_them():
    assert rng.key(-5).tolist() == [-5, 0]
    assert rng.key(np.int32(7)).tolist() == [7, 0]
    assert torch.equal(rng.key(tensor([[3], [4]])), tensor([[[3, 0]], [[4, 0]]]))
    assert rng.key(1, "meta").device.type == "meta"


# ---- refusals

KEY = torch.zeros(2, dtype=torch.int64)

REFUSED = [
    (lambda: rng.key(1.5), TypeError, "key: seed is 1.5"),
    (lambda: rng.key(tensor(1.0)), TypeError, "key: seed has dtype torch.float32"),
    (lambda: rng.key(2**63), ValueError, "key: seed is 9223372036854775808"),
    (lambda: rng.split(3), TypeError, "split: key is int"),
    (lambda: rng.split(KEY.double()), TypeError, "split: key is torch.float64"),
    (lambda: rng.split(KEY[:1]), ValueError, r"split: key has shape \(1,\)"),
    (lambda: rng.split(KEY, 0), ValueError, "split: num is 0"),
    (lambda: rng.split(KEY, 2.0), TypeError, "split: num is a float"),
    (lambda: rng.fold_in(KEY, -1), ValueError, "fold_in: data is -1"),
    (lambda: rng.fold_in(KEY, 1.0), TypeError, "fold_in: data is a float"),
    (lambda: rng.fold_in(KEY, tensor(1.0)), TypeError, "fold_in: data has dtype"),
    (
        lambda: rng.fold_in(KEY.expand(3, 2), torch.arange(2)),
        ValueError,
        r"fold_in: data has shape \(2,\).*broadcasts with \(3,\)",
    ),
    (lambda: rng.philox4x32(KEY, KEY), ValueError, r"philox4x32: counter has shape \(2,\)"),
    (
        lambda: rng.philox4x32(torch.zeros(4), KEY),
        TypeError,
        "philox4x32: counter is torch.float32",
    ),
    (
        lambda: rng.philox4x32(KEY.repeat(3, 2), KEY.expand(2, 2)),
        ValueError,
        r"philox4x32: words has shape \(2, 2\)",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
