"""The README keeps its word: its commands exist, the first one makes pictures from nothing, the next ones use them."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands_under(heading: str) -> list[str]:
    """Return the fenced blocks of commands below a heading."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [block.strip() for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)]


def documented_commands() -> list[str]:
    """Return every `belvedere ...` line of the README and the docs' code blocks."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                if match := re.search(r"(?:^|bin/)belvedere (.*)", line.split("#")[0].strip()):
                    found.append(match[1].split("&&")[0].strip())
    return found


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_parse(line: str) -> None:
    from belvedere.apps.cli import app

    command, words = typer.main.get_command(app), shlex.split(line)
    context = command.make_context("belvedere", list(words), resilient_parsing=words[-1] == "--help")
    while hasattr(command, "resolve_command") and not words[-1].startswith("--help"):
        if not (rest := [*context._protected_args, *context.args]):
            break
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def test_there_are_commands_to_check() -> None:
    assert len(documented_commands()) >= 8


def anchors(page: Path) -> set[str]:
    """Return what links to the headings of a page end in, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    }


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_linked_files_and_headings_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}#{anchor}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the files that a clone would have."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of the files a clone would have")
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(commands: str, folder: Path) -> str:
    """Run lines of commands, up to the first that fails, and return what they print."""
    done = subprocess.run(["bash", "-e", "-c", commands], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_commands_make_pictures_from_nothing_and_use_them(clone: Path) -> None:
    first, session = commands_under("Make pictures")
    run(first, clone)
    assert (clone / "toys.png").stat().st_size > 20_000
    pictures = sorted((clone / "toys").glob("*.png"))
    assert len(pictures) == 24
    again = run(f".venv/bin/belvedere regenerate {pictures[5]}", clone)
    assert again.startswith("bit-identical")
    *commands, last = session.splitlines()
    assert last.startswith("belvedere serve")  # which ends when it is told to
    told = run("\n".join(commands), clone)
    assert "bit-identical" in told and "no faults found" in told
    assert (clone / "orbit.mp4").is_file() and len(list((clone / "many").glob("*.png"))) == 4
