"""What every test runs in: nothing of the network, and temporary files in a folder that goes when the tests end."""

import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import constants

SOCKET = 108 - len("/org.chromium.Chromium.abcdef/SingletonSocket")
"""Bytes of the folder that the longest path of a socket leaves."""


def test_no_hub_is_asked() -> None:
    assert constants.HF_HUB_OFFLINE


def test_temporary_files_lie_in_a_folder_of_this_run(tmp_path: Path) -> None:
    folder = tempfile.gettempdir()
    assert Path(folder).name.startswith("bvd-") and len(folder) < SOCKET
    program = "import os, tempfile; print(tempfile.gettempdir(), os.environ['GRADIO_TEMP_DIR'])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [folder, folder]
    assert not tmp_path.is_relative_to(folder), "what a failed test leaves stays"
