import hashlib
import multiprocessing
import operator
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from cache import CacheReader
from cache.errors import CacheDamaged, CacheMismatch, RowAbsent
from data.samples import content_key


@pytest.fixture
def reader(sealed):
    with CacheReader(sealed) as opened:
        yield opened


def test_importing_cache_loads_no_torch():
    code = "import cache, sys; assert not {'torch', 'data', 'pipeline'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_reader_gives_back_the_table_bit_for_bit(make, reader):
    make.assert_equal(reader.table(), make.table())
    assert len(reader) == reader.n_samples == len(make.table().key)
    assert reader.n_rows == len(make.table().view)
    assert reader.tasks == make.manifest().tasks
    assert reader.manifest == make.manifest()
    assert reader.features == {"embedding": (2, 3)}


def test_reader_finds_keys_with_trailing_nuls_and_no_others(make, reader):
    keys = make.table().key
    assert (keys[:, 15] == 0).any()
    assert reader.find(keys[::-1]).tolist() == list(range(len(keys)))[::-1]
    assert reader.find([bytes(key) for key in keys]).tolist() == list(range(len(keys)))
    absent = keys.copy()
    absent[:, 15] ^= 1
    assert reader.find(absent).tolist() == [-1] * len(keys)
    assert reader.find([b"\0" * 16, b"\xff" * 16]).tolist() == [-1, -1]
    assert reader.find([]).shape == (0,)
    assert reader.find(np.empty((0, 16), np.uint8)).dtype == np.int64


@pytest.mark.parametrize("keys", [[b"short"], [b"x" * 17], np.zeros((2, 15), np.uint8), np.zeros(16, np.uint8)])
def test_reader_refuses_keys_of_another_length(reader, keys):
    with pytest.raises(CacheMismatch):
        reader.find(keys)


def test_reader_numbers_rows_by_sample_and_view(make, reader):
    table = make.table()
    for sample in range(len(reader)):
        rows = reader.rows_of(sample)
        assert reader.views_of(sample).tolist() == table.view[rows].tolist()
        assert reader.row(sample, table.view[rows]).tolist() == list(range(rows.start, rows.stop))
        absent = np.setdiff1d(np.arange(-1, 70_000), table.view[rows])
        assert (reader.row(sample, absent) == -1).all()
    assert reader.row([-1, 0, len(reader)], 0).tolist()[::2] == [-1, -1]
    assert reader.row(np.arange(len(reader)), np.arange(3)[:, None]).shape == (3, len(reader))
    assert reader.sample_of_row.tolist() == sorted(reader.sample_of_row.tolist())
    assert reader.pairs() == {
        (bytes(table.key[sample]), int(view)) for sample in range(len(reader)) for view in reader.views_of(sample)
    }


def test_reader_hands_out_fresh_writable_copies(make, reader):
    table = make.table()
    for rows in (slice(0, 3), range(3), [0, 1, 2], np.array([0, 1, 2], np.uint64)):
        for got, expected in [
            (reader.params(rows), table.params[:3]),
            (reader.witness(rows), table.witness[:3]),
            (reader.logits(rows), table.logits["class"][:3]),
            (reader.logits(rows, "sex/é"), table.logits["sex/é"][:3]),
            (reader.feature(rows), table.features["embedding"][:3]),
        ]:
            assert got.dtype == expected.dtype
            assert np.array_equal(got, expected)
            got[...] = 0
    assert np.array_equal(reader.logits(1), table.logits["class"][1])
    assert reader.logits([]).shape == (0, 3)
    make.assert_equal(reader.table(), table)


@pytest.mark.parametrize("memory_map", [True, False])
def test_names_are_read_when_they_are_asked_for_and_of_the_file_that_was_opened(make, tmp_path, memory_map):
    path, names = make.write(tmp_path / "t.h5", make.table()), make.table().names
    reader = CacheReader(path, memory_map=memory_map)
    assert "samples/name" not in reader._inspected.small
    stored = reader.stored_names(np.array([2, 0]))
    assert [name.decode() for name in stored.tolist()] == [names[2], names[0]]
    assert (reader.names, reader[bytes(make.table().key[3])].name) == (names, names[3])
    late = CacheReader(path, memory_map=memory_map)
    os.replace(make.write(tmp_path / "other.h5", make.table(seed=1)), path)
    with pytest.raises(CacheDamaged, match="was replaced by another cache"):
        _ = late.names


@pytest.mark.parametrize("rows", [-1, [0, -1], [10**6], np.array([-1]), range(-1, 2)])
def test_reader_refuses_the_row_of_an_absent_view(reader, rows):
    with pytest.raises(RowAbsent, match="lacks"):
        reader.logits(rows)


def test_reader_refuses_unknown_names_and_masks(reader):
    with pytest.raises(CacheMismatch, match="did you mean 'class'"):
        reader.logits([0], "clas")
    with pytest.raises(CacheMismatch, match="did you mean 'embedding'"):
        reader.feature([0], "embeding")
    with pytest.raises(CacheMismatch, match="expected integers"):
        reader.logits(np.ones(reader.n_rows, bool))
    with pytest.raises(RowAbsent):
        reader.rows_of(-1)


def test_ids_ignore_names_and_provenance_but_no_row(make, sealed, tmp_path):
    reader = CacheReader(sealed)
    manifest = make.manifest()
    manifest.provenance["host"] = "elsewhere"
    other = CacheReader(make.write(tmp_path / "other.h5", make.table(names=False), manifest))
    assert other.seal != reader.seal
    assert (other.recipe_id, other.cache_id, other.content_id) == (
        reader.recipe_id,
        reader.cache_id,
        reader.content_id,
    )
    table = make.table()
    table.logits["class"][0, 0] += 1
    answer = CacheReader(make.write(tmp_path / "answer.h5", table))
    assert answer.cache_id == reader.cache_id
    assert answer.content_id != reader.content_id


def test_repr_is_one_line(reader):
    assert repr(reader).startswith("CacheReader('")
    assert "class: 3 classes" in repr(reader)
    assert "\n" not in repr(reader)


def test_pickle_is_small_and_reads_in_a_spawned_process(make, reader):
    reader.logits([0])
    assert len(pickle.dumps(reader)) < 1000
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        got = pool.submit(operator.methodcaller("logits", [2, 0]), reader).result(timeout=60)
    assert np.array_equal(got, make.table().logits["class"][[2, 0]])


def test_pickle_refuses_a_file_that_was_replaced(make, sealed, tmp_path):
    path = tmp_path / "t.h5"
    shutil.copy(sealed, path)
    mapped, fresh = CacheReader(path), CacheReader(path)
    before = mapped.logits([0])
    pickled = pickle.dumps(mapped)
    make.write(tmp_path / "new.h5", make.table(seed=1))
    os.replace(tmp_path / "new.h5", path)
    with pytest.raises(CacheDamaged, match="replaced"):
        pickle.loads(pickled).logits([0])
    with pytest.raises(CacheDamaged, match="replaced"):
        fresh.logits([0])
    assert np.array_equal(mapped.logits([0]), before)


def test_pickle_accepts_the_same_file_pulled_again(sealed, tmp_path):
    path = tmp_path / "t.h5"
    shutil.copy(sealed, path)
    pickled = pickle.dumps(CacheReader(path))
    path.unlink()
    shutil.copy(sealed, path)
    assert pickle.loads(pickled).logits([0]).shape == (1, 3)


def test_reader_opens_a_read_only_file_in_a_read_only_folder(make, sealed, tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    shutil.copy(sealed, folder / "t.h5")
    (folder / "t.h5").chmod(0o444)
    folder.chmod(0o555)
    try:
        with CacheReader(folder / "t.h5") as reader:
            reader.verify()
            make.assert_equal(reader.table(), make.table())
        assert [path.name for path in folder.iterdir()] == ["t.h5"]
    finally:
        folder.chmod(0o755)


def test_readers_do_not_collect_descriptors(sealed):
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        reader = CacheReader(sealed)
        reader.logits([0])
        reader.close()
    assert len(os.listdir("/dev/fd")) <= before + 1


def test_reader_refuses_to_map_a_file_that_was_cut_after_opening(sealed, tmp_path):
    path = tmp_path / "t.h5"
    shutil.copy(sealed, path)
    reader = CacheReader(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CacheDamaged, match="replaced"):
        reader.logits([0])


def test_a_name_that_two_images_had_is_no_answer(make, tmp_path):
    table = make.table()
    table.names[1] = table.names[0]
    cache = CacheReader(make.write(tmp_path / "t.h5", table))
    for ask in (cache.__getitem__, cache.__contains__):
        with pytest.raises(CacheMismatch, match=r"2 images in .* ask with the image file or its key"):
            ask(table.names[0])
    assert cache[table.names[2]].key == bytes(table.key[2])
    assert cache[bytes(table.key[1])].name == table.names[0]
    assert b"too short" not in cache


def test_a_sample_is_found_by_key_by_image_and_by_stored_name(make, tmp_path):
    image = tmp_path / "renamed.jpg"
    image.write_bytes(b"bytes of an image")
    table = make.table()
    table.key[:] = np.sort(table.key, axis=0)
    table.key[-1] = np.frombuffer(hashlib.blake2b(b"bytes of an image", digest_size=16).digest(), np.uint8)
    key = bytes(table.key[-1])
    order = [bytes(one) for one in table.key]
    table.key[:] = np.frombuffer(b"".join(sorted(order)), np.uint8).reshape(-1, 16)
    at = sorted(order).index(key)
    cache = CacheReader(make.write(tmp_path / "t.h5", table))
    rows = cache.rows_of(at)
    for sample in (key, image, str(image), table.names[at]):
        assert sample in cache
        found = cache[sample]
        assert (found.key, found.name) == (key, table.names[at])
        assert np.array_equal(found.views, table.view[rows])
        assert np.array_equal(found.params, table.params[rows])
        assert np.array_equal(found.logits["sex/é"], table.logits["sex/é"][rows])
        assert np.array_equal(found.features["embedding"], table.features["embedding"][rows])
    assert list(cache) == sorted(order)
    image.write_bytes(b"re-encoded")
    for absent in (image, b"x" * 16, "no/such.jpg"):
        assert absent not in cache
        with pytest.raises(RowAbsent, match="neither an image file"):
            cache[absent]


def test_the_data_package_makes_the_same_keys_of_images():
    assert content_key(b"abc") == hashlib.blake2b(b"abc", digest_size=16).digest()
