"""The code's own habits: short functions and files, no forbidden arithmetic, no pickle, no address of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gossipdbn"
FUNCTION_LINES = 70
FILE_LINES = 450

# Each exception is named with its reason; an entry that is no longer needed fails the test that reads it.
LONG_FUNCTIONS: dict[str, str] = {
    "gossipdbn/kernels/tiles.py::tile": "builds one unrolled register tile; its parts share every local",
}
LONG_FILES: dict[str, str] = {}
READS_ENVIRONMENT: dict[str, str] = {
    "gossipdbn/embedded/artifacts.py": "http_proxy and its kin, handed on to a Java that does not read them itself",
    "gossipdbn/embedded/java.py": "JAVA_HOME, PATH and the cache folder are how a machine says where its Java is",
    "gossipdbn/embedded/spark.py": "Spark's scripts take their folders and Java from the environment",
    "gossipdbn/spark/placement.py": "a placed worker is a process that gets what its executor's Python worker has",
    "gossipdbn/spark/session.py": "PySpark takes its settings from the environment when it starts its JVM",
}
TEXT = {
    ".py",
    ".toml",
    ".md",
    ".txt",
    ".sh",
    ".yaml",
    ".yml",
    ".xml",
    ".lock",
    ".properties",
    ".cfg",
    ".json",
    ".html",
    ".css",
}
NAMELESS_TEXT = {"Makefile", "run", "LICENSE", "Dockerfile"}


@lru_cache(maxsize=1)
def tracked() -> tuple[Path, ...]:
    """Files of the repository; of the folder where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        names = [ROOT / n for n in listed.stdout.decode().split("\0") if n]
    except (OSError, subprocess.CalledProcessError):
        names = [p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
    return tuple(p for p in names if p.is_file())


@lru_cache(maxsize=1)
def sources() -> dict[str, ast.Module]:
    """Syntax trees of the package, by path."""
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    doc = (first.end_lineno or 0) - first.lineno + 1 if text else 0
    return (function.end_lineno or 0) - function.lineno + 1 - doc


def modules_imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def judge(found: set[str], excused: dict[str, str], what: str) -> None:
    """Fail on offenders without an excuse and on excuses without an offender."""
    assert not found - set(excused), f"{what}: {sorted(found - set(excused))}"
    assert not set(excused) - found, (
        f"no longer needed among the exceptions of '{what}': {sorted(set(excused) - found)}"
    )


def test_functions_are_short() -> None:
    found = {f"{p}::{f.name}" for p, t in sources().items() for f in functions(t) if body_lines(f) > FUNCTION_LINES}
    judge(found, LONG_FUNCTIONS, f"functions over {FUNCTION_LINES} lines")


def test_files_are_short() -> None:
    python = [p for p in tracked() if p.suffix == ".py"]
    found = {str(p.relative_to(ROOT)) for p in python if len(p.read_text().splitlines()) > FILE_LINES}
    judge(found, LONG_FILES, f"files over {FILE_LINES} lines")


def _is_array_product(node: ast.AST) -> bool:
    """``a @ b`` or a BLAS-backed numpy function: their bits differ between machines."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
        return True
    names = {"dot", "matmul", "inner", "vdot", "tensordot", "einsum"}
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names


@pytest.mark.parametrize("folder", ["kernels", "core", "wire", "worker"])
def test_training_uses_no_blas_and_no_reassociation(folder: str) -> None:
    for path, tree in sources().items():
        if not path.startswith(f"gossipdbn/{folder}/"):
            continue
        for node in ast.walk(tree):
            assert not _is_array_product(node), f"{path}:{node.lineno}: a BLAS product in training"
            if isinstance(node, ast.keyword) and node.arg == "fastmath":
                off = isinstance(node.value, ast.Constant) and node.value.value is False
                assert off, f"{path}:{node.value.lineno}: fastmath changes bits"


def test_the_product_check_sees_products() -> None:
    for text in ("a @ b", "np.dot(a, b)", "a.dot(b)", "np.einsum('ij,jk', a, b)"):
        assert any(_is_array_product(n) for n in ast.walk(ast.parse(text))), text


def test_nothing_is_pickled() -> None:
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    found = {p for p, t in sources().items() if banned & {m.split(".")[0] for m in modules_imported(t)}}
    judge(found, {}, "imports of a serialiser that can run code")
    loads = {
        p for p, t in sources().items() for n in ast.walk(t) if isinstance(n, ast.keyword) and n.arg == "allow_pickle"
    }
    for path in loads:
        assert "allow_pickle=True" not in (ROOT / path).read_text(), f"{path}: allow_pickle"


def _constants_classes_functions(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def test_all_is_sorted() -> None:
    for path, tree in sources().items():
        for node in tree.body:
            named = isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
            )
            if named and isinstance(node, ast.Assign):
                names = ast.literal_eval(node.value)
                in_order = sorted(set(names), key=_constants_classes_functions)
                assert list(names) == in_order, f"{path}: __all__ is not sorted"


def _reads_environment(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if named and (node.value.id, node.attr) in {("os", "environ"), ("os", "getenv"), ("sys", "argv")}:
            return True
    return False


def test_environment_is_read_in_the_command_line_alone() -> None:
    found = {p for p, t in sources().items() if not p.startswith("gossipdbn/cli/") and _reads_environment(t)}
    judge(found, READS_ENVIRONMENT, "argv or environment read outside the command line")


def test_public_names_are_documented() -> None:
    found = []
    for path, tree in sources().items():
        if not ast.get_docstring(tree):
            found.append(path)
        for node in tree.body:
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_") and not ast.get_docstring(node):
                found.append(f"{path}::{node.name}")
    assert not found, f"public modules, classes and functions without a docstring: {found}"


# Put together from pieces, so that this file does not contain what it forbids.
FORBIDDEN = re.compile(
    "|".join(
        (
            r"repo1?\.maven", r"maven\." + "org", r"pypi\." + "org", "python" + "hosted", r"registry\." + "npmjs",
            r"crates\." + "io", r"deb\." + "debian", "/" + "work/", "/" + r"root/", r"/home/\w+/", r"\.\./" + "shared",
        )
    )
)  # fmt: skip


def test_no_file_names_a_registry_or_a_folder_of_one_machine() -> None:
    found = []
    for path in tracked():
        if path.suffix in TEXT or path.name in NAMELESS_TEXT:
            lines = path.read_text(errors="replace").splitlines()
            found += [
                f"{path.relative_to(ROOT)}:{i}: {line.strip()[:80]}"
                for i, line in enumerate(lines, 1)
                if FORBIDDEN.search(line)
            ]
    assert not found, "\n".join(found)
