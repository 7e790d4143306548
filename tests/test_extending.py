"""The contract for add-ons is on its page, and a package that breaks it is named with what to do."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stepwell import extend
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.app import create_app
from stepwell.commands import cli
from stepwell.service_addon import sole
from stepwell.settings import Settings, setting_groups
from stepwell.store.transport.transport import open_transport
from stepwell_export import stages
from stepwell_export.keras.own_layers import load_step_rules
from stepwell_export.runtime.errors import MissingExtraError
from stepwell_export.runtime.registered import GROUPS, AddonError, registered

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
CONTRACT: tuple[Any, ...] = (
    *(extend.Broker, extend.BrokerModule, extend.MessageReader, extend.MessageWriter),
    *(extend.Command, extend.Stage, extend.AddonSettings, extend.ServiceAddon, extend.ModelRuns, extend.RequestTracer),
    *(extend.RedisTransport, extend.Publisher),
)


def hooks() -> Iterator[str]:
    """Yield each public field and method of the contract's classes as it is written in the source."""
    for group in CONTRACT:
        [found] = ast.parse(textwrap.dedent(inspect.getsource(group))).body
        assert isinstance(found, ast.ClassDef)
        for node in found.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                node.name == "__init__" or node.name[0] != "_"
            ):
                yield signature(node)
            elif isinstance(node, ast.AnnAssign) and group in (extend.Broker, extend.Command):
                yield ast.unparse(node)
    [rule] = ast.parse(inspect.getsource(extend.register_step_rule)).body
    assert isinstance(rule, ast.FunctionDef)
    yield signature(rule)


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    function.body, function.decorator_list = [ast.Expr(ast.Constant(...))], []
    return ast.unparse(function)


def plain(code: str) -> str:
    return "".join(code.split()).replace("'", '"').replace(",)", ")")


def test_each_hook_is_on_the_page_with_its_signature() -> None:
    page = plain(PAGE)

    assert [hook for hook in hooks() if plain(hook) not in page] == []


def test_each_group_is_on_the_page_and_in_the_contract() -> None:
    lines = [f'[project.entry-points."{group}"]' for group in GROUPS]

    assert [line for line in lines if line not in PAGE or line not in str(extend.__doc__)] == []


def test_an_example_of_the_page_is_code_of_the_example_package() -> None:
    package = ROOT / "examples" / "addon"
    shown = re.findall(r"^From `examples/addon/([\w/.]+)`:\n\n```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
    entry_points = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)

    assert [name for name, code in shown if code not in (package / name).read_text()] == []
    assert [lines for lines in entry_points if lines not in (package / "pyproject.toml").read_text()] == []
    assert (len(shown), len(entry_points)) == (9, len(GROUPS))


def test_each_name_of_the_contract_can_be_imported() -> None:
    needs_onnx = set() if find_spec("onnx") else {"GraphBuilder"}

    assert [name for name in {*extend.__all__} - needs_onnx if getattr(extend, name) is None] == []


def test_two_add_ons_with_a_hook_that_one_alone_may_have_are_named() -> None:
    class One(extend.ServiceAddon):
        def publisher(self, store: Any) -> extend.Publisher:
            return extend.Publisher()

    class Other(One):
        pass

    context: Any = None
    addons = [One(context, "1"), Other(context, "1")]

    with pytest.raises(AddonError, match=r"One and .*Other all have `publisher`; at most one may"):
        sole(addons, "publisher", lambda addon: addon.publisher(context))


# -------------------------------------------------------------------- packages that cannot be used

Installer = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """Return what puts a package onto the import path, with one entry point `other`, as pip leaves it behind."""

    def one(package: str, group: str, source: str) -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[{group}]\nother = {module}:thing\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    monkeypatch.syspath_prepend(tmp_path)
    _forget_what_is_registered()
    yield one
    monkeypatch.undo()
    _forget_what_is_registered()


def _forget_what_is_registered() -> None:
    registered.cache_clear()
    setting_groups.cache_clear()


USES: dict[str, Callable[[], Any]] = {
    "stepwell.addons": lambda: create_app(Settings()),
    "stepwell.brokers": lambda: BrokerUrl.parse("other:///x"),
    "stepwell.settings": setting_groups,
    "stepwell.stages": lambda: stages.other,
    "stepwell.step_rules": load_step_rules,
    "stepwell.stores": lambda: open_transport("other://x", timeout=1.0),
}
"""What loads the entry points of each group, but that of commands."""


@pytest.mark.parametrize("group", USES)
def test_a_package_that_cannot_be_imported_is_named_where_it_is_needed(install: Installer, group: str) -> None:
    install("stepwell-other", group, "raise ValueError('seven')")

    with pytest.raises(AddonError, match=r"'other' of stepwell-other .* ValueError: seven.*uninstall it"):
        USES[group]()


def test_a_package_with_bad_commands_is_reported_and_the_others_are_there(
    install: Installer, capsys: pytest.CaptureFixture[str]
) -> None:
    install("stepwell-other", "stepwell.commands", "raise ValueError('seven')")

    assert "serve" in cli.find_commands()
    assert "'other' of stepwell-other cannot be loaded" in capsys.readouterr().err


def test_a_command_whose_name_is_taken_is_reported_and_left_out(
    install: Installer, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "from stepwell.commands import Command\nthing = {'serve': Command('Serve tea.', 'tea:serve')}"
    install("stepwell-other", "stepwell.commands", source)

    assert cli.find_commands()["serve"].help != "Serve tea."
    assert "stepwell_other:thing registers the command 'serve', which is there already" in capsys.readouterr().err


def test_a_package_that_registers_something_of_another_type_is_named(install: Installer) -> None:
    install("stepwell-other", "stepwell.brokers", "thing = 7")

    with pytest.raises(AddonError, match=r"'other' of stepwell-other is int; stepwell\.brokers takes Broker"):
        BrokerUrl.parse("other:///x")


def test_an_addon_that_is_no_subclass_is_named(install: Installer) -> None:
    install("stepwell-other", "stepwell.addons", "class thing: pass")

    with pytest.raises(AddonError, match=r"stepwell-other is .*; stepwell\.addons takes subclasses of ServiceAddon"):
        create_app(Settings())


def test_a_package_that_a_package_needs_is_named(install: Installer) -> None:
    install("stepwell-other", "stepwell.brokers", "import tea_client")

    with pytest.raises(MissingExtraError, match="stepwell-other needs the package tea_client"):
        BrokerUrl.parse("other:///x")


def test_two_packages_that_register_one_name_are_named(install: Installer) -> None:
    install("stepwell-other", "stepwell.brokers", "")
    install("stepwell-another", "stepwell.brokers", "")

    with pytest.raises(AddonError, match="stepwell-another and stepwell-other both register 'other'"):
        BrokerUrl.parse("file:///x")


def test_a_setting_whose_name_is_taken_is_named(install: Installer) -> None:
    source = "from stepwell.extend import AddonSettings\nclass thing(AddonSettings):\n    drift: bool = False"
    install("stepwell-other", "stepwell.settings", source)

    with pytest.raises(AddonError, match=r"stepwell_other has the setting 'drift', which stepwell\.addons\.drift"):
        setting_groups()


def test_a_service_whose_settings_accept_tokens_that_nothing_verifies_does_not_start(install: Installer) -> None:
    source = "from stepwell.extend import AddonSettings\n"
    source += "class thing(AddonSettings):\n    accepts_tokens = property(lambda self: True)"
    install("stepwell-other", "stepwell.settings", source)

    with pytest.raises(AddonError, match="no add-on verifies them"):
        create_app(Settings())
