"""The project around the code: versions in step, notebooks with outputs, targets explained, rooms apart."""

from __future__ import annotations

import ast
import copy
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import MatchSpec, Version, VersionSpec

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = (
    "01_sessions",
    "02_alignment",
    "03_semantic_ids",
    "04_generator",
    "05_preference",
    "06_cascade",
    "07_results",
    "08_ablations",
    "09_alignment",
    "10_experiments",
    "11_updates",
    "12_latency",
)
MARKET_CHAPTERS = ("m1_data_card", "m2_headroom", "m3_chinese")
MODULES = sorted(path for package in ("onesug_lite", "data_synth") for path in (ROOT / package).rglob("*.py"))
FORBIDDEN = ("util", "utils", "helper", "helpers", "common", "misc", "manager", "base")
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "polars",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
)

CONDA_TO_PYPI = {
    "matplotlib-base": "matplotlib",
    "pytorch-cpu": "torch",
    "pytorch-gpu": "torch",
    "seaborn-base": "seaborn",
}
NOT_OURS = {"python", "pip"}  # conda brings these itself; the lock does not pin them


# ---------------------------------------------------------------- versions
def read_lock(text: str) -> dict[str, str]:
    pins = (line.split("==") for line in text.splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def read_requirements(project: dict) -> dict[str, SpecifierSet]:
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    return {canonicalize_name(found.name): found.specifier for found in map(Requirement, lines)}


def drift(environment: dict, lock: dict[str, str], project: dict) -> list[str]:
    """What keeps environment.yml, requirements.lock and pyproject.toml from saying the same."""
    found, seen = [], set()
    for entry in environment["dependencies"]:
        if isinstance(entry, dict):
            for line in entry["pip"]:
                if line.endswith("-e ."):
                    continue
                requirement = Requirement(line)
                name = canonicalize_name(requirement.name)
                seen.add(name)
                if name not in lock:
                    found.append(f"pip: {name} is not in the lock")
                elif not requirement.specifier or not requirement.specifier.contains(lock[name]):
                    found.append(f"pip: '{line}' does not hold the lock's {lock[name]}")
            continue
        spec = MatchSpec(entry)
        conda = spec.name.normalized
        if conda == "python":
            bound = SpecifierSet(project["requires-python"])
            if not bound.contains(str(spec.version).removesuffix(".*")):
                found.append(f"python: '{entry}' is outside {bound}")
        if conda in NOT_OURS:
            continue
        name = canonicalize_name(CONDA_TO_PYPI.get(conda, conda))
        seen.add(name)
        if name not in lock:
            found.append(f"conda: {name} is not in the lock")
        elif spec.version is None:
            found.append(f"conda: '{entry}' names no version")
        elif not VersionSpec(spec.version).matches(Version(lock[name])):
            found.append(f"conda: '{entry}' does not hold the lock's {lock[name]}")
    for name, specifier in read_requirements(project).items():
        if name not in seen:
            found.append(f"pyproject.toml needs {name}; environment.yml lacks it")
        if name not in lock:
            found.append(f"pyproject.toml needs {name}; requirements.lock lacks it")
        elif not specifier.contains(lock[name]):
            found.append(f"the lock's {name} {lock[name]} is outside pyproject.toml's {specifier}")
    return found


@pytest.fixture(scope="module")
def versions() -> tuple[dict, dict[str, str], dict]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    lock = read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return environment, lock, project


def test_versions_are_in_step(versions):
    assert drift(*versions) == []


def test_drift_is_found(versions):
    environment, lock, project = versions

    def changed(old: str, new: str | None) -> dict:
        copied = copy.deepcopy(environment)
        entries = copied["dependencies"]
        place = entries.index(old)
        entries[place : place + 1] = [] if new is None else [new]
        return copied

    numpy = next(entry for entry in environment["dependencies"] if str(entry).startswith("numpy="))
    assert drift(changed(numpy, "numpy=1.26"), lock, project) == [
        f"conda: 'numpy=1.26' does not hold the lock's {lock['numpy']}"
    ]
    assert drift(changed(numpy, "numpy"), lock, project) == ["conda: 'numpy' names no version"]
    assert drift(changed(numpy, None), lock, project) == ["pyproject.toml needs numpy; environment.yml lacks it"]
    assert "python: 'python=3.10' is outside >=3.11" in drift(changed("python=3.11", "python=3.10"), lock, project)

    stranger = copy.deepcopy(environment)
    stranger["dependencies"].insert(0, "left-pad=1.0")
    assert drift(stranger, lock, project) == ["conda: left-pad is not in the lock"]

    older = copy.deepcopy(environment)
    older["dependencies"][-1]["pip"][0] = "ir-measures==0.0.1"
    assert drift(older, lock, project) == [f"pip: 'ir-measures==0.0.1' does not hold the lock's {lock['ir-measures']}"]
    assert drift(environment, lock | {"polars": "99.0"}, project), "a lock that moved on alone is drift as well"


def test_lock_pins_every_line_once():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines), "no ranges, no build tags"
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert len(names) == len(set(names))
    assert {"torch", "setuptools"} <= set(names)


# ---------------------------------------------------------------- notebooks
def missing_outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """Code cells that were never run, or a notebook none of whose cells shows anything."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    found = [f"cell {place} was never run" for place, cell in enumerate(cells) if cell.execution_count is None]
    if not any(cell.outputs for cell in cells):
        found.append("no cell has an output")
    found += [
        f"cell {place} ended in an error"
        for place, cell in enumerate(cells)
        if any(output.output_type == "error" for output in cell.outputs)
    ]
    return found


def test_six_chapters_and_three_of_the_market():
    assert [path.stem for path in NOTEBOOKS if re.match(r"\d\d_", path.name)] == list(CHAPTERS)
    assert [path.stem for path in NOTEBOOKS if path.name.startswith("m")] == list(MARKET_CHAPTERS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_outputs(path):
    assert missing_outputs(nbformat.read(path, as_version=4)) == [], "run it and store its outputs: make refresh"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_one_parameters_cell(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and "profile" in tagged[0].source


def test_planted_notebooks_are_caught():
    run = nbformat.v4.new_code_cell("1 + 1", execution_count=1)
    run.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
    fresh = nbformat.v4.new_code_cell("2 + 2")
    failed = nbformat.v4.new_code_cell("1 / 0", execution_count=2)
    failed.outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])]
    silent = nbformat.v4.new_code_cell("x = 1", execution_count=1)
    text = nbformat.v4.new_markdown_cell("prose")

    def check(*cells):
        return missing_outputs(nbformat.v4.new_notebook(cells=[text, *cells]))

    assert check(run) == []
    assert check(run, silent) == []
    assert check(run, fresh) == ["cell 1 was never run"]
    assert check(run, failed) == ["cell 1 ended in an error"]
    assert check(silent) == ["no cell has an output"]
    assert check(fresh) == ["cell 0 was never run", "no cell has an output"]


# ---------------------------------------------------------------- make
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_target_is_explained():
    listing = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True)
    assert listing.returncode == 0, listing.stderr
    explained = set(re.findall(r"^  ([a-z-]+)\s+\S", listing.stdout, flags=re.M))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(shlex.split(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.M)[1]))
    assert explained == targets - {"help"}
    assert {"book", "test", "lab", "grid", "refresh", "bench", "clean"} <= explained
    assert targets == set(re.findall(r"^([a-z-]+):", makefile, flags=re.M)), (
        "each target is phony and each phony a target"
    )


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text() and script.stat().st_mode & 0o111
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert set(yaml.safe_load(workflow)["jobs"]) == {"test", "book"}


# ---------------------------------------------------------------- modules
def imported(source: str) -> set[str]:
    """Top-level names of everything a module imports, at whatever depth."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_imported_sees_every_form():
    source = "import os.path\ndef f():\n    from torch.nn import Module\nfrom . import log\nimport polars, numpy"
    assert imported(source) == {"os", "torch", "polars", "numpy"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_rooms_are_kept_apart(path):
    names = imported(path.read_text(encoding="utf-8"))
    if path.is_relative_to(ROOT / "data_synth"):
        assert not names & {"torch", "transformers", "sentence_transformers", "onesug_lite"}
    else:
        assert "data_synth" not in names


def test_every_import_is_declared(versions):
    declared = {canonicalize_name(Requirement(line).name) for line in versions[2]["dependencies"]}
    sources = metadata.packages_distributions()
    ours = {"onesug_lite", "data_synth"} | sys.stdlib_module_names
    needed = {name for path in MODULES for name in imported(path.read_text(encoding="utf-8"))} - ours
    lacking = {n for n in needed if not {canonicalize_name(found) for found in sources.get(n, [n])} & declared}
    assert not lacking, "imported by a package, not among the dependencies of pyproject.toml"


def test_there_are_two_packages():
    assert {path.parent.name for path in MODULES} == {"onesug_lite", "data_synth"}


def test_no_module_is_named_for_nothing():
    folders = [ROOT / name for name in ("onesug_lite", "data_synth", "tests", "benchmarks")]
    stems = {path.stem for folder in folders for path in folder.rglob("*.py")}
    parts = {part for stem in stems for part in stem.split("_")}
    assert not parts & set(FORBIDDEN)


@pytest.mark.parametrize("package", ["onesug_lite", "data_synth.lexicon"])
def test_importing_the_package_is_light(package):
    code = f"import sys, {package}; print(*(set({HEAVY!r}[:3]) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an unpacked copy, no git checkout")
def test_nothing_that_a_command_makes_is_kept():
    """Wherever a run is told to build: a market in the history stays in every clone."""
    for made in ("build/store/a.parquet", "notebooks/build/store/a.parquet", "results/lite/runs/a.ipynb"):
        done = subprocess.run(["git", "check-ignore", "-q", "--no-index", made], cwd=ROOT, check=False)
        assert done.returncode == 0, f"{made} is not ignored: add it to .gitignore"


def test_init_imports_nothing_heavy():
    tree = ast.parse((ROOT / "onesug_lite" / "__init__.py").read_text(encoding="utf-8"))
    assert not imported(ast.unparse(tree)) & set(HEAVY)


# ---------------------------------------------------------------- book
def toc_files(node) -> list[str]:
    if isinstance(node, dict):
        own = [node["file"]] if "file" in node else []
        return own + [name for value in node.values() for name in toc_files(value)]
    return [name for value in node for name in toc_files(value)] if isinstance(node, list) else []


def test_table_of_contents_holds_every_page():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = set(toc_files(toc)) | {toc["root"]}
    pages = {str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "book").rglob("*.md")}
    written = {"book/data_card", "book/ledger"}  # by data_synth.card and onesug_lite.ledger, when the book is rendered
    assert listed == pages | written | {f"notebooks/{name}" for name in CHAPTERS + MARKET_CHAPTERS}


def test_reference_holds_every_module():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "book" / "api").glob("*.md"))
    documented = re.findall(r"automodule:: (\S+)", text)
    modules = [f"{path.parent.name}.{path.stem}" for path in MODULES if not path.stem.startswith("_")]
    assert sorted(documented) == sorted(modules)


def test_citations_are_in_the_bibliography():
    known = set(
        re.findall(r"^@\w+\{(\S+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), flags=re.M)
    )
    pages = [*(ROOT / "book").rglob("*.md"), *NOTEBOOKS]
    cited = {
        key.strip()
        for page in pages
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text(encoding="utf-8"))
        for key in keys.split(",")
    }
    assert cited and cited <= known


def test_pages_ask_the_network_for_nothing():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    sphinx = config["sphinx"]["config"]
    assert (ROOT / "book" / "_static" / sphinx["mathjax_path"]).is_file()
    assert sphinx["nb_ipywidgets_js"] == {} and "sphinx_thebe" not in sphinx["extensions"]
    svg = (ROOT / "book" / "_static" / "road.svg").read_text(encoding="utf-8")
    assert "<desc" in svg and "prefers-color-scheme: dark" in svg and "href" not in svg
