"""The rules of the code base, checked on the files themselves. ARCHITECTURE.md says why each is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from caterwaul.cluster.describe import entries
from caterwaul.cluster.settings import Settings

ROOT = Path(__file__).parents[1]
PACKAGES = ("membership", "managers", "cluster")  # each imports only itself and those before it
MODULE_LINES_MAX, FUNCTION_LINES_MAX = 400, 50

#: Protocol logic and values: they import nothing that knows time, chance, or the world outside.
CORES = """
    membership/errors membership/member membership/view membership/codec membership/crowding membership/effects membership/channel membership/knobs
    membership/domains membership/messages membership/detector membership/dialling membership/group membership/networks membership/rate membership/secret membership/settings
    managers/alone managers/antientropy managers/attributes managers/budget managers/changes managers/comparing managers/core managers/departed managers/dialogue managers/digests managers/drafts managers/entry managers/errors managers/expiry managers/finding managers/freshness managers/handover managers/heads managers/held managers/identity managers/kept managers/limits managers/locks managers/lookup
    managers/merging managers/merging_types managers/messages managers/moving managers/near managers/notices managers/outbox managers/packing managers/parting managers/passivating managers/placement managers/principals managers/record managers/renewal managers/replica managers/session managers/settings managers/storing managers/stores/settings managers/stores/store
    managers/sharing managers/summaries managers/surveying managers/tabs managers/telling managers/tokens managers/touches managers/turns managers/value_tags managers/values managers/wheel
    cluster/errors cluster/frames cluster/handshake cluster/link cluster/meeting cluster/outbox cluster/pipeline cluster/redial
    cluster/security/admission cluster/security/proof
    cluster/stages/__init__ cluster/stages/compressing cluster/stages/cutting cluster/tables cluster/balancer/choice cluster/demo/ledger
""".split()  # noqa: SIM905  (a list of that many quotes is hard to read)
IMPURE = {
    "asyncio", "click", "datetime", "http", "io", "jinja2", "logging", "multiprocessing", "os", "pathlib", "queue", "random", "secrets",
    "select", "selectors", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "twisted", "urllib", "uuid", "zope",
}  # fmt: skip
#: What a core may have of those after all, and why.
PURE_ENOUGH = {
    ("membership/codec", "io"): "a buffer in memory",
    ("managers/values", "io"): "a buffer in memory",
    ("managers/value_tags", "datetime"): "values that sessions hold; nobody asks what time it is",
    ("managers/value_tags", "uuid"): "the same; none are made",
    ("managers/merging_types", "datetime"): "the same",
}
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}
TELLS_DATES = {
    "managers/web/pyramid",  # its sessions say when they were created, as Pyramid wants it
    "managers/snapshots", "managers/persistence", "cluster/snapshot_commands", "cluster/store_commands", "cluster/store_clock",  # no monotonic clock outlives a machine
    "managers/stores/redis",  # how far away a date is: its server counts on from there
}  # fmt: skip
#: Imports inside functions, and why they cannot stand at the top.
LATE_IMPORTS = {
    ("cluster/embedding", "installed_reactor"): "importing the reactor installs it, which must happen after a fork",
    ("cluster/demo/command", "_run"): "importing the reactor installs it",
    ("managers/stores/opening", "_sql"): "SQLAlchemy need not be installed where nobody has a database",
    ("cluster/wrap_command", "_serve_asgi"): "uvicorn need not be installed where nothing is served by it",
    ("managers/stores/opening", "_redis"): "redis-py need not be installed where no store is in a Redis",
}
#: Which front, or kind of store, may import them: modules whose names begin so.
FRAMEWORKS = {
    "flask": "managers/web/flask", "werkzeug": "managers/web/flask", "django": "managers/web/django", "asgiref": "managers/web/django",
    "klein": "managers/web/klein", "pyramid": "managers/web/pyramid", "webob": "managers/web/pyramid", "redis": "managers/stores/redis",
}  # fmt: skip
CBOR = {"membership/codec", "managers/values", "managers/value_tags"}
#: What makes code, or objects of any class, out of data: by the name it is called by, also as an attribute of anything (`builtins.eval`, `reactor.exec`).
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "import_module", "namedAny", "namedModule", "execfile", "runpy", "run_path", "run_module"}
FORBIDDEN_MODULES = {
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dbm", "dill", "cloudpickle", "jsonpickle", "joblib", "yaml", "ruamel", "importlib", "imp", "runpy",
    "pkgutil", "code", "codeop", "ctypes",
}  # fmt: skip
FORBIDDEN_ATTRIBUTES = {"__reduce__", "__reduce_ex__", "__globals__", "__subclasses__", "__code__"}
#: And what may do one of those after all. What is compiled, imported or looked up there is no data of a peer or a browser.
RUNS_CODE = {
    ("cluster/web", "importlib.import_module"): "the WSGI application that the configuration names",
    ("cluster/web", "import_module"): "the same",
    ("cluster/wrapping", "importlib.import_module"): "the front of a framework that the application is made of, by a fixed name",
    ("cluster/wrapping", "import_module"): "the same",
    ("cluster/cli", "importlib.metadata.version"): "says which version this is",
    ("cluster/supervisor/launch", "ctypes"): "one system call: a process that ends when its parent does",
    ("caterwaul/requirements", "importlib.metadata.PackageNotFoundError"): "reads versions of libraries by fixed names",
    ("caterwaul/requirements", "importlib.metadata.distribution"): "the same",
    ("caterwaul/requirements", "importlib.util.find_spec"): "the same; imports nothing",
}


#: What writes files, or makes directories, and which. Sessions are written by stores, where the configuration names one, and by an operator's snapshot.
WRITES_FILES = {
    "cluster/admin_socket": "the directory of the socket",
    "cluster/audit": "the audit log: who logged in and out, of which session by the hash of its id",
    "cluster/demo/nodes": "the demo's configurations and logs",
    "cluster/security/authority": "keys and certificates",
    "cluster/security/private_files": "the same, and secrets",
    "cluster/snapshot_file": "what an operator saves of all sessions, where he says",
    "managers/stores/file_aside": "sessions, in the directory that the configuration names: files that are not items yet",
    "managers/stores/file_locks": "locks beside them",
    "managers/stores/file_swap": "directories for them",
    "managers/stores/private_directory": "the same, and the files",
    "managers/stores/sql_engine": "an SQLite database, so that nobody else can read it",
}
_WRITING = {"write_text", "write_bytes", "mkdir", "mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryDirectory", "symlink_to"}
_STORAGE = {"sqlite3", "shelve", "dbm", "tempfile", "mmap", "shutil"}


class Module(NamedTuple):
    name: str  #: ``membership/view``
    path: Path
    text: str
    tree: ast.Module


class Import(NamedTuple):
    target: str  #: ``membership/view`` for ours, ``os.path`` for others
    line: int
    function: str  #: the function it stands in, empty at the top
    typing_only: bool


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            found.append(Module(path.relative_to(ROOT).with_suffix("").as_posix(), path, text, ast.parse(text)))
    return tuple(found)


@cache
def names() -> frozenset[str]:
    return frozenset(module.name for module in modules())


def imports(module: Module) -> Iterator[Import]:
    def walk(node: ast.AST, function: str, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, function, typing_only)
            elif isinstance(child, ast.ImportFrom):
                for target in _targets(module, child):
                    yield Import(target, child.lineno, function, typing_only)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, child.name, typing_only)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, function, True)
            else:
                yield from walk(child, function, typing_only)

    yield from walk(module.tree, "", False)


def _targets(module: Module, node: ast.ImportFrom) -> set[str]:
    """Modules that one `from ... import` names: `from . import x` may name a module or a name inside the package."""
    if not node.level:
        return {f"{node.module}.{alias.name}" if node.module == "twisted.internet" else node.module or "" for alias in node.names}
    folder = module.name.split("/")[: -node.level]
    base = "/".join([*folder, *(node.module or "").split(".")]).strip("/")
    found = set()
    for alias in node.names:
        inner = f"{base}/{alias.name}".strip("/")
        found.add(inner if inner in names() else base if base in names() else f"{base}/__init__")
    return found


def ours(module: Module) -> Iterator[Import]:
    return (found for found in imports(module) if "/" in found.target)


def each(rule: Callable[[Module], Iterable[object]]) -> Callable[[], None]:
    """A test that lists, by module, what breaks the rule."""

    def test() -> None:
        found = {module.name: faults for module in modules() if (faults := list(rule(module)))}
        assert not found

    test.__doc__ = rule.__doc__
    return test


@each
def test_imports_go_one_way_between_packages(module: Module) -> Iterable[object]:
    allowed = PACKAGES[: PACKAGES.index(module.name.split("/")[0]) + 1]
    return (found for found in ours(module) if found.target.split("/")[0] not in allowed)


@each
def test_imports_of_our_own_are_relative_and_exist(module: Module) -> Iterable[object]:
    yield from (found for found in imports(module) if found.target.split(".")[0] in {"caterwaul", *PACKAGES} and "/" not in found.target)
    yield from (found for found in ours(module) if found.target not in names())


def test_no_module_imports_itself_through_others() -> None:
    graph = {module.name: {found.target for found in ours(module) if not found.typing_only} for module in modules()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    assert done == set(graph)


@each
def test_imports_stand_at_the_top_of_the_module(module: Module) -> Iterable[object]:
    return (found for found in imports(module) if found.function and (module.name, found.function) not in LATE_IMPORTS)


@each
def test_nobody_installs_the_reactor_by_being_imported(module: Module) -> Iterable[object]:
    return (found for found in imports(module) if found.target == "twisted.internet.reactor" and not found.function)


def test_every_core_exists() -> None:
    assert sorted(set(CORES) - names()) == []


@each
def test_cores_know_no_time_chance_or_world(module: Module) -> Iterable[object]:
    if module.name in CORES:
        foreign = {found.target.split(".")[0] for found in imports(module) if "/" not in found.target}
        yield from (name for name in foreign & IMPURE if (module.name, name) not in PURE_ENOUGH and not (name == "random" and _only_the_type(module)))
        yield from re.findall(r"(?<!def )\bopen\(|\bprint\(|\bRandom\(", module.text)


def _only_the_type(module: Module) -> bool:
    """`from random import Random` for an argument; the module's own functions are nobody's."""
    return not re.search(r"^import random|\brandom\.\w", module.text, re.MULTILINE)


@each
def test_cores_build_on_cores_only(module: Module) -> Iterable[object]:
    if module.name in CORES:
        yield from (found for found in ours(module) if found.target not in CORES and not found.target.endswith("__init__"))


@each
def test_one_place_owns_timers(module: Module) -> Iterable[object]:
    if module.name != "membership/driver":
        yield from (node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.Attribute) and node.attr == "callLater")


def running(module: Module) -> Iterator[str]:
    """Names of what could make code, or objects of any class, out of data, where this module imports or calls or hands it on."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if (node.module or "").split(".")[0] in FORBIDDEN_MODULES)
            yield from (alias.name for alias in node.names if alias.name in FORBIDDEN_CALLS and node.module in ("builtins", "twisted.python.reflect"))
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS:
            yield node.id
        elif isinstance(node, ast.Attribute) and (node.attr in FORBIDDEN_ATTRIBUTES or (node.attr in FORBIDDEN_CALLS and ast.unparse(node) != "re.compile")):
            yield ast.unparse(node)


def all_modules() -> Iterator[Module]:
    """Those that no package has, too: what is installed beside them."""
    yield from modules()
    for path in [*sorted((ROOT / "caterwaul").glob("*.py")), *sorted((ROOT / "twisted").rglob("*.py"))]:
        text = path.read_text(encoding="utf-8")
        yield Module(path.relative_to(ROOT).with_suffix("").as_posix(), path, text, ast.parse(text))


def test_nothing_decodes_what_could_run() -> None:
    """No pickle, no eval, no import by a name that came in data; and what is allowed to is still needed."""
    assert {(module.name, name) for module in all_modules() for name in running(module)} == set(RUNS_CODE)


def test_what_could_run_is_found() -> None:
    planted = {
        "import pickle": "pickle", "from marshal import loads": "marshal.loads", "import yaml.cyaml": "yaml.cyaml", "eval('1')": "eval", "f = exec": "exec",
        "import builtins; builtins.eval('1')": "builtins.eval", "__import__(name)": "__import__", "from importlib import import_module": "importlib.import_module",
        "from twisted.python.reflect import namedAny": "namedAny", "reflect.namedAny(x)": "reflect.namedAny", "compile(x, y, z)": "compile",
        "x.__reduce__()": "x.__reduce__", "importlib.import_module(n)": "importlib.import_module",
    }  # fmt: skip
    for text, name in planted.items():
        assert name in set(running(Module("planted", ROOT, text, ast.parse(text)))), text
    harmless = "import re\nre.compile('a')\nevaluate(1)\ncode = 3\nself.code = code"
    assert set(running(Module("planted", ROOT, harmless, ast.parse(harmless)))) == set()


def test_application_is_the_only_import_by_name() -> None:
    """And its name comes from the configuration or the command line: nobody else calls it."""
    callers = {
        module.name for module in modules() for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "load_application"
    }  # fmt: skip
    assert callers == {"cluster/web", "cluster/wrap_command"}


@each
def test_a_framework_is_imported_in_its_own_front_only(module: Module) -> Iterable[object]:
    return (found for found in imports(module) if (owner := FRAMEWORKS.get(found.target.split(".")[0])) and not module.name.startswith(owner))


@each
def test_few_modules_know_cbor(module: Module) -> Iterable[object]:
    return (found for found in imports(module) if found.target.split(".")[0] == "cbor2" and module.name not in CBOR)


@each
def test_timeouts_do_not_follow_the_wall_clock(module: Module) -> Iterable[object]:
    nodes = (node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return (node.lineno for node in nodes if module.name not in TELLS_DATES and f"{node.value.id}.{node.attr}" in WALL_CLOCK)  # type: ignore[attr-defined]


@each
def test_a_module_is_short_and_says_what_it_is(module: Module) -> Iterable[object]:
    lines = len(module.text.splitlines())
    if lines > MODULE_LINES_MAX:
        yield f"{lines} lines"
    if not ast.get_docstring(module.tree):
        yield "no docstring"


@each
def test_a_function_fits_a_screen(module: Module) -> Iterable[object]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield node.name, lines


@each
def test_nothing_is_left_to_do(module: Module) -> Iterable[object]:
    return re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b", module.text)


def test_exceptions_to_the_rules_are_still_needed() -> None:
    late = {(module.name, found.function) for module in modules() for found in imports(module) if found.function}
    assert set(LATE_IMPORTS) == late
    used = {(module.name, found.target.split(".")[0]) for module in modules() for found in imports(module)}
    assert set(PURE_ENOUGH) <= used
    assert {name for name, target in used if target == "cbor2"} == CBOR


def test_every_setting_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for entry in entries(Settings.of()):
        assert entry.doc, entry.name
        assert f"| `{entry.key}` |" in page, entry.name


def test_twisted_is_not_shadowed_by_our_folder() -> None:
    assert not list((ROOT / "twisted").rglob("__init__.py"))


def _writes_a_file(module: Module) -> bool:
    if any(found.target.partition(".")[0] in _STORAGE for found in imports(module)):
        return True
    for call in (node for node in ast.walk(module.tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""
        modes = [argument.value for argument in call.args[-2:] if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]
        writes = any(set(mode) & set("wax+") and set(mode) <= set("rwaxbt+") for mode in modes)
        if name in _WRITING or (name == "open" and (writes or ast.unparse(call.func) == "os.open")):
            return True
    return False


def test_sessions_are_written_to_files_by_stores_only() -> None:
    assert {module.name for module in modules() if _writes_a_file(module)} == set(WRITES_FILES)
    writing = {name for name in WRITES_FILES if name.startswith(("managers/", "membership/"))}
    assert all(name.startswith("managers/stores/") for name in writing)
