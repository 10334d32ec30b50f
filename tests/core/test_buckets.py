"""Objects, local copies, working copies and checksums in a bucket of an emulated server."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from spirit_jax.core import buckets
from spirit_jax.core.bucket_cache import local_copy
from spirit_jax.core.buckets import BucketError, BucketJobError
from spirit_jax.core.checksums import find_damage, write_checksums
from spirit_jax.core.errors import fail
from spirit_jax.core.files import FileFormatError, read_json, read_text, write_file
from spirit_jax.core.leases import Leases, hold_anywhere
from spirit_jax.core.locks import LockError
from spirit_jax.core.paths import PathError, local_path, output_path
from spirit_jax.core.shared_folder import shared_folder
from spirit_jax.core.working_copy import WorkingCopy, is_seal, output_directory, uploading
from tests.support.buckets import DROP


def _downloads(faults):
    return [request for request in faults.requests if "/download/" in request or "alt=media" in request]


def test_a_folder_is_copied_once_and_only_changed_objects_are_read_again(bucket, bucket_faults):
    for name, content in (("a.txt", b"one"), ("deep/b.txt", b"two"), (".hidden", b"three")):
        buckets.write_object(f"{bucket}/folder/{name}", content)
    first = local_copy(f"{bucket}/folder")
    assert first.name == "folder"
    assert {name: (first / name).read_bytes() for name in ("a.txt", "deep/b.txt")} == {
        "a.txt": b"one",
        "deep/b.txt": b"two",
    }
    assert abs((first / "a.txt").stat().st_mtime - time.time()) < 60
    bucket_faults.requests.clear()
    assert local_copy(f"{bucket}/folder") == first
    assert not _downloads(bucket_faults)
    buckets.write_object(f"{bucket}/folder/a.txt", b"changed")
    bucket_faults.requests.clear()
    second = local_copy(f"{bucket}/folder")
    assert (second / "a.txt").read_bytes() == b"changed"
    assert (first / "a.txt").read_bytes() == b"one"
    assert len(_downloads(bucket_faults)) == 1
    assert local_path(f"{bucket}/folder/deep/b.txt", "--input").endswith("/b.txt")


@pytest.mark.parametrize("fault", [429, 503, DROP])
def test_requests_are_repeated_after_a_fault_and_content_stays_whole(bucket, bucket_faults, fault):
    content = os.urandom(200_000) + b"\r"
    if fault != DROP:
        bucket_faults.plan(fault, 2, "POST")
    buckets.write_object(f"{bucket}/large", content)
    bucket_faults.plan(fault, 2, "GET", "alt=media" if fault == DROP else "large")
    assert local_copy(f"{bucket}/large").read_bytes() == content
    if fault != DROP:
        bucket_faults.plan(fault, 2, "GET")
    assert buckets.read_object(f"{bucket}/large") == content


def test_a_connection_that_always_drops_is_one_line_and_leaves_no_copy(bucket, bucket_faults, tmp_path, capsys):
    buckets.write_object(f"{bucket}/large", os.urandom(10_000))
    bucket_faults.plan(DROP, 10_000, "GET", "alt=media")
    with pytest.raises(BucketJobError, match="large: the transfer failed and repeating it did not help") as error:
        local_copy(f"{bucket}/large")
    with pytest.raises(SystemExit) as stop:
        fail("command", error.value, error.value.exit_code)
    assert (stop.value.code, capsys.readouterr().err.count("\n")) == (1, 1)
    assert not [path for path in (tmp_path / "bucket_cache").rglob("*") if path.is_file()]
    bucket_faults.clear()
    assert local_copy(f"{bucket}/large").stat().st_size == 10_000


def test_missing_buckets_and_objects_and_bad_addresses_are_named(bucket):
    for action in (local_copy, buckets.list_objects, buckets.check_bucket, lambda url: write_file(url, "x")):
        with pytest.raises(BucketError, match="gs://no-such-bucket"):
            action("gs://no-such-bucket/x")
    with pytest.raises(BucketError, match=f"{bucket}/nothing: nothing is there"):
        local_copy(f"{bucket}/nothing")
    with pytest.raises(BucketError, match="nothing: no such bucket or object"):
        read_text(f"{bucket}/nothing")
    for address in ("gs://", "gs:///x", "gs://bucket/a//b", "gs://bucket/../b"):
        with pytest.raises(BucketError, match="expected gs://BUCKET/NAME"):
            buckets.split(address)
    for address in ("gs://My Bucket/x", "gs://a?b/x", "gs://x", "gs://-bucket"):
        with pytest.raises(BucketError, match="no bucket can be named"):
            buckets.split(address)
    with pytest.raises(PathError, match="s3:// is not read or written"):
        output_path("s3://bucket/x", "--output")


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_may_not_read_are_named_as_such(bucket, bucket_faults, status):
    bucket_faults.plan(status, 100)
    with pytest.raises(BucketError, match="these credentials may not be used here .*gcloud auth"):
        local_copy(f"{bucket}/folder")


def test_copies_that_do_not_fit_are_refused_and_unused_ones_removed(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("SPIRIT_BUCKET_CACHE_GIB", str(1500 / 2**30))
    for name in ("a", "b"):
        buckets.write_object(f"{bucket}/{name}", os.urandom(1000))
    first = local_copy(f"{bucket}/a")
    with pytest.raises(BucketError, match="do not fit beside .*allow more with SPIRIT_BUCKET_CACHE_GIB"):
        local_copy(f"{bucket}/b")  # this process uses the first copy
    next(first.parent.glob(".used-by-*")).rename(first.parent / f".used-by-{1 << 22}")  # a process that has ended
    assert local_copy(f"{bucket}/b").stat().st_size == 1000
    assert not first.exists()


def test_a_working_copy_uploads_seals_last_and_removes_what_was_removed(bucket, bucket_faults):
    copy = WorkingCopy(f"{bucket}/out", lambda name: True)
    with uploading(copy):
        for name in ("metadata.json", "train-00000-of-00001.array_record", "deep/log.jsonl", ".lock"):
            (copy.directory / name).parent.mkdir(exist_ok=True)
            (copy.directory / name).write_text(name)
        bucket_faults.requests.clear()
        copy.upload()
        posts = [request for request in bucket_faults.requests if request.startswith("POST")]
        assert len(posts) == 3
        assert set(buckets.list_objects(f"{bucket}/out")) == {
            "metadata.json",
            "train-00000-of-00001.array_record",
            "deep/log.jsonl",
        }
        found = buckets.list_objects(f"{bucket}/out")
        assert max(found, key=lambda name: found[name].updated) == "metadata.json"
        (copy.directory / "deep/log.jsonl").unlink()
        (copy.directory / "metadata.json").write_text("changed")
    assert buckets.read_object(f"{bucket}/out/metadata.json") == b"changed"
    assert "deep/log.jsonl" not in buckets.list_objects(f"{bucket}/out")
    assert not copy.directory.exists()
    assert is_seal("a/checksums-00000-of-00001.json")


def test_a_folder_whose_upload_was_cut_short_is_not_downloaded(bucket, monkeypatch):
    def copy_of_run():
        return WorkingCopy(f"{bucket}/run", lambda name: True, ("tokenizer",))

    def write_but_b(url, content, write=buckets.write_object):
        if url.endswith("/b"):
            raise BucketJobError("killed")
        write(url, content)

    def write_tokenizer(copy):
        (copy.directory / "tokenizer").mkdir()
        for name in ("tokenizer/a", "tokenizer/b", "log.jsonl"):
            (copy.directory / name).write_text(name)

    copy = copy_of_run()
    write_tokenizer(copy)
    with monkeypatch.context() as patch:
        patch.setattr(buckets, "write_object", write_but_b)
        with pytest.raises(BucketJobError):
            copy.upload()
    assert "tokenizer/a" in buckets.list_objects(f"{bucket}/run")
    copy = copy_of_run()
    assert [path.name for path in copy.directory.iterdir()] == ["log.jsonl"]
    (copy.directory / "log.jsonl").write_text("longer")
    copy.upload()
    copy = copy_of_run()
    assert not (copy.directory / "tokenizer").exists()
    write_tokenizer(copy)
    copy.upload()
    assert set(buckets.list_objects(f"{bucket}/run")) == {"tokenizer/a", "tokenizer/b", "log.jsonl"}
    assert (copy_of_run().directory / "tokenizer/b").read_text() == "tokenizer/b"


def test_work_is_finished_in_a_bucket_when_all_folders_are_complete_there(bucket, monkeypatch):
    """A kill at any write leaves complete folders or none, and never the file that says that the work is done."""
    written, write_object = [], buckets.write_object

    def copy_of_run():
        return WorkingCopy(f"{bucket}/run", lambda name: True, ("parts/*", "*/steps/*"))

    def write_few(url, content):
        if len(written) == few:
            raise BucketJobError("killed")
        written.append(url)
        return write_object(url, content)

    monkeypatch.setattr("spirit_jax.core.working_copy._TRANSFERS", 1)
    names = ("one/steps/2/a", "one/steps/2/b", "one/log.jsonl", "parts/one/data", "parts/one/config.json")
    for few in range(2 + len(names)):
        copy, written[:] = copy_of_run(), []
        for name in (f"one/steps/2/try-{few}", *names, "one/finished.json"):
            (copy.directory / name).parent.mkdir(parents=True, exist_ok=True)
            (copy.directory / name).write_text(f"{name} {few}")
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "write_object", write_few)
            with pytest.raises(BucketJobError):
                copy.upload()
        copy.remove()
        copy = copy_of_run()
        found = {str(path.relative_to(copy.directory)) for path in copy.directory.rglob("*") if path.is_file()}
        assert "one/finished.json" not in found
        assert found <= {"one/log.jsonl"}, few
        copy.remove()
    copy = copy_of_run()
    for name in (*names, "one/finished.json"):
        (copy.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (copy.directory / name).write_text("complete")
    copy.upload()
    copy.remove()
    assert set(buckets.list_objects(f"{bucket}/run")) == {*names, "one/finished.json"}


def test_a_failed_upload_leaves_no_seal(bucket, bucket_faults):
    copy = WorkingCopy(f"{bucket}/out", lambda name: True)
    (copy.directory / "metadata.json").write_text("{}")
    (copy.directory / "data").write_text("data")
    bucket_faults.plan(503, 1000, "POST")
    with pytest.raises(BucketJobError):
        copy.upload()
    bucket_faults.clear()
    assert not buckets.list_objects(f"{bucket}/out")
    copy.upload()
    assert set(buckets.list_objects(f"{bucket}/out")) == {"metadata.json", "data"}
    copy.remove()


def test_an_output_directory_holds_what_is_in_the_bucket(bucket):
    write_file(f"{bucket}/out/kept.txt", "kept")
    write_file(f"{bucket}/out/large.bin", "not needed")
    with output_directory(f"{bucket}/out", "--output", lambda name: name != "large.bin") as directory:
        assert [path.name for path in directory.iterdir()] == ["kept.txt"]
        (directory / "kept.txt").write_text("changed")
    assert read_text(f"{bucket}/out/kept.txt") == "changed"
    assert read_text(f"{bucket}/out/large.bin") == "not needed"


def test_checksums_of_a_bucket_notice_a_flipped_byte(bucket):
    for name, content in (("a", b"one"), ("deep/b", b"two"), (".hidden", b"x")):
        write_file(f"{bucket}/step/{name}", content)
    assert "no checksums" in str(find_damage(f"{bucket}/step"))
    for index in range(2):
        write_checksums(f"{bucket}/step", index, 2)
    assert find_damage(f"{bucket}/step") is None
    write_file(f"{bucket}/step/deep/b", b"twp")
    assert "deep/b: is not as it was written" in str(find_damage(f"{bucket}/step"))
    buckets.remove_object(f"{bucket}/step/deep/b")
    assert "deep/b: is not as it was written" in str(find_damage(f"{bucket}/step"))


def test_json_of_a_bucket_is_checked_like_a_file(bucket):
    write_file(f"{bucket}/x.json", "{")
    with pytest.raises(FileFormatError, match=r"x\.json: not JSON"):
        read_json(f"{bucket}/x.json")


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    place = tmp_path / "shared" if request.param == "disk" else request.getfixturevalue("bucket")
    return shared_folder(f"{place}")


def test_a_lease_has_one_holder_until_it_is_released_or_expires(folder):
    with Leases(folder, 60) as mine, Leases(folder, 60) as other:
        assert mine.claim("1")
        assert not other.claim("1")
        assert other.claim("2")
        mine.release("1")
        assert other.claim("1")
    assert not [name for name in folder.names() if name.endswith(".lease")]
    folder.write("1.lease", b'{"host": "elsewhere", "pid": 1}')
    with Leases(folder, 60) as mine:
        assert not mine.claim("1")
    time.sleep(1.1)
    with Leases(folder, 1) as mine:
        assert mine.claim("1")


def test_the_lease_of_a_killed_process_is_free_at_once(folder):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder.write("1.lease", json.dumps({"host": socket.gethostname(), "pid": ended.pid}).encode())
    with Leases(folder, 60) as mine:
        assert mine.claim("1")


def test_a_lease_is_rewritten_while_it_is_held(folder):
    with Leases(folder, 0.4) as mine:
        assert mine.claim("1")
        before, deadline = time.time() - folder.age("1.lease"), time.monotonic() + 60
        while time.time() - folder.age("1.lease") < before + 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_lease_that_another_process_removes_while_it_is_made_is_no_error(bucket, monkeypatch):
    """Two processes find the lease of a lost one, and the slower one removes that of the faster one."""
    find_object = buckets.find_object

    def find_nothing_once(url):
        monkeypatch.setattr(buckets, "find_object", find_object)
        buckets.remove_object(url)

    with Leases(shared_folder(bucket), 60) as mine:
        monkeypatch.setattr(buckets, "find_object", find_nothing_once)
        assert mine.claim("1")


def test_a_directory_in_a_bucket_is_held_by_one_job(bucket):
    with hold_anywhere(bucket, ".lock", "training") as check:
        check()
        with (
            pytest.raises(LockError, match=r"is at work here \(training\)"),
            hold_anywhere(bucket, ".lock", "training"),
        ):
            pass
    with hold_anywhere(bucket, ".lock", "training"):
        pass


@pytest.mark.parametrize("name", ["run[1]", "a b", "\u00fc", "x%20y", "a#12", "a?b=1", "a*b", "a+b"])
def test_odd_names_are_read_written_and_sealed(bucket, name):
    for file in ("a", "deep/b"):
        write_file(f"{bucket}/{name}/{file}", file)
    assert read_text(f"{bucket}/{name}/a") == "a"
    assert (local_copy(f"{bucket}/{name}") / "deep/b").read_text() == "deep/b"
    write_checksums(f"{bucket}/{name}")
    assert find_damage(f"{bucket}/{name}") is None


def test_a_connection_that_drops_while_checksums_are_read_is_named(bucket, bucket_faults):
    write_file(f"{bucket}/step/a", os.urandom(10_000))
    write_checksums(f"{bucket}/step")
    bucket_faults.plan(DROP, 10_000, "GET", "step%2Fa")
    with pytest.raises(BucketJobError, match="step/a: the transfer failed"):
        find_damage(f"{bucket}/step")


def test_objects_that_are_there_already_stay_while_room_is_made(bucket, bucket_faults, monkeypatch):
    monkeypatch.setenv("SPIRIT_BUCKET_CACHE_GIB", str(2500 / 2**30))
    for name in ("folder/a", "folder/b", "other"):
        buckets.write_object(f"{bucket}/{name}", os.urandom(1000))
    for name in ("folder", "other"):
        tree = local_copy(f"{bucket}/{name}", lambda name: name != "b").parent
        next(tree.glob(".used-by-*")).rename(tree / f".used-by-{1 << 22}")  # a process that has ended
    bucket_faults.requests.clear()
    assert {path.name for path in local_copy(f"{bucket}/folder").iterdir()} == {"a", "b"}
    assert len(_downloads(bucket_faults)) == 1


def test_a_log_that_grows_while_it_is_uploaded_is_uploaded_as_it_was_then(bucket, monkeypatch):
    copy = WorkingCopy(f"{bucket}/out", lambda name: True)
    log, write_object = copy.directory / "log.jsonl", buckets.write_object
    monkeypatch.setattr("spirit_jax.core.working_copy._SMALL", 0)
    log.write_text("one\n")

    def write_slowly(url, content):
        result = write_object(url, content)
        if content == log:
            log.write_text("one\ntwo\n")
            raise BucketJobError("the server holds other bytes than were sent")
        return result

    monkeypatch.setattr(buckets, "write_object", write_slowly)
    copy.upload()
    assert buckets.read_object(f"{bucket}/out/log.jsonl") == b"one\ntwo\n"
    copy.remove()


def test_a_seal_that_is_written_during_an_upload_waits_for_the_next_one(bucket, monkeypatch):
    copy = WorkingCopy(f"{bucket}/out", lambda name: True)
    (copy.directory / "metadata.json").write_text("names nothing")
    copy.upload()
    (copy.directory / "metadata.json").write_text("names data")
    (copy.directory / "data").write_text("data")
    write_object = buckets.write_object

    def write_while_the_command_works(url, content):
        (copy.directory / "more").write_text("more")
        (copy.directory / "metadata.json").write_text("names data and more")
        return write_object(url, content)

    with monkeypatch.context() as patch:
        patch.setattr(buckets, "write_object", write_while_the_command_works)
        copy.upload()
    assert buckets.read_object(f"{bucket}/out/metadata.json") == b"names nothing"
    copy.upload()
    assert buckets.read_object(f"{bucket}/out/metadata.json") == b"names data and more"
    copy.remove()


def test_working_copies_of_killed_processes_are_removed_whatever_they_were_named(bucket):
    left = WorkingCopy(f"{bucket}/first", lambda name: True).directory.parent
    gone = left.rename(left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{1 << 22}-")))
    WorkingCopy(f"{bucket}/{'n' * 150}/{'n' * 150}", lambda name: True).remove()
    assert not gone.exists()


@pytest.mark.parametrize("ahead", [-1000, 1000])
def test_leases_do_not_depend_on_the_clock_of_this_machine(folder, monkeypatch, ahead):
    folder.write("1.lease", b'{"host": "elsewhere", "pid": 1}')
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + ahead)
    with Leases(folder, 60) as mine:
        assert not mine.claim("1")
    monkeypatch.setattr("time.time", real)
    time.sleep(1.1)
    monkeypatch.setattr("time.time", lambda: real() + ahead)
    with Leases(folder, 1) as mine:
        assert mine.claim("1")
    monkeypatch.setattr("time.time", real)


def test_a_silent_holder_does_not_release_the_lease_of_its_successor(folder):
    with Leases(folder, 60) as silent, Leases(folder, 60) as successor:
        assert silent.claim("1")
        folder.remove("1.lease")
        assert successor.claim("1")
        silent.release("1")
        assert successor.is_there("1")


def test_a_lease_that_was_removed_is_lost(folder):
    with Leases(folder, 0.4) as mine:
        assert mine.claim("1")
        folder.clear()
        deadline = time.monotonic() + 60
        while mine.lost != {"1"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not folder.names()
