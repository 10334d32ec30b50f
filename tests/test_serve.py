"""The command `serve`: its arguments, and a server from its start to a signal that ends it."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from spirit_jax import serve
from spirit_jax.serve import ServeConfig
from tests.support import checkpoints


def test_the_slots_fit_the_context():
    """Length and longest answer are those asked for, within the model's context."""
    small = ServeConfig(checkpoint="c").capacity(context=256)
    assert (small.slots, small.length, small.new_tokens, small.features.shortlist) == (8, 256, 255, 64)
    large = ServeConfig(checkpoint="c", any_top_k=True).capacity(context=100_000)
    assert (large.length, large.new_tokens, large.features.shortlist) == (4096, 1024, None)


def test_the_name_is_that_of_the_directory():
    assert ServeConfig(checkpoint="runs/tiny/checkpoints/500").model_name() == "tiny-500"
    assert ServeConfig(checkpoint="ckpt/expressive").model_name() == "expressive"
    assert ServeConfig(checkpoint="c", name="mine").model_name() == "mine"


def test_adapters_are_merged_or_named():
    assert ServeConfig(checkpoint="c", adapter=["runs/a=b/1"]).merged_adapter() == "runs/a=b/1"
    several = ServeConfig(checkpoint="c", adapter=["voice=runs/voice/1", "asr-2=x=y"])
    assert several.merged_adapter() is None
    assert several.named_adapters() == [("voice", "runs/voice/1"), ("asr-2", "x=y")]


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(serve.API_KEY, raising=False)
    assert ServeConfig(checkpoint="c").api_key() is None
    monkeypatch.setenv(serve.API_KEY, "from the environment\n")
    assert ServeConfig(checkpoint="c").api_key() == "from the environment"
    path = tmp_path / "key"
    path.write_text("from a file\n")
    assert ServeConfig(checkpoint="c", api_key_file=str(path)).api_key() == "from a file"
    path.write_text("\n")
    with pytest.raises(serve.ServeError, match="the API key is empty"):
        ServeConfig(checkpoint="c", api_key_file=str(path)).api_key()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "c", "--port", "70000"], "port must be 0 to 65535, found 70000"),
        (["--checkpoint", "c", "--slots", "0"], "slots must be 1 or more, found 0"),
        (["--checkpoint", "c", "--limits.seconds", "0"], "limits.seconds must be 1 or more"),
        (["--checkpoint", "c", "--tls-key", "k"], "belong together"),
        (["--checkpoint", "c", "--adapter", "a", "--adapter", "b=c"], "give several as NAME=DIR"),
        (["--checkpoint", "c", "--adapter", "a=b", "--adapter", "a=d"], "a name comes twice in c, a, a"),
        (["--checkpoint", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        serve.main(arguments)
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert message in shown
    assert "Traceback" not in shown


def test_a_signal_lets_running_requests_finish():
    """The command prints its address, answers, and on SIGTERM completes the answer that streams before it ends."""
    command = [sys.executable, "-m", "spirit_jax.serve", "--checkpoint", str(checkpoints.converted("small_base"))]
    command += ["--port", "0", "--warm-up", "none", "--slots", "2", "--length", "256", "--tokens-per-step", "1"]
    root = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
            assert httpx.get(f"{address}/health", timeout=30).json() == {"status": "ok", "model": "small_base"}
            body = {"prompt": "[Text]hello", "output_modality": "text", "max_new_tokens": 120, "stream": True}
            with httpx.stream("POST", f"{address}/v1/generate", json=body, timeout=60) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                time.sleep(0.1)
                assert '"type": "end"' in [line for line in lines if line][-1]
            process.wait(timeout=30)
        finally:
            watchdog.cancel()
            process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
