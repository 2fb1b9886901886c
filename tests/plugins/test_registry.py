import importlib.metadata
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from influence_core.errors import (
    BackendConflictError,
    BackendError,
    BackendImportError,
    BackendNotFoundError,
    PluginError,
    PluginWarning,
)
from influence_core.plugins import (
    API_VERSION,
    GROUP,
    BackendSpec,
    Registry,
    default_registry,
    find_backend,
    hookimpl,
)

MODULE = "torch.nn.modules.module.Module"


class Base:
    pass


class Model(Base):
    pass


class Special(Model):
    pass


def dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def spec_text(name: str, *types: type, **fields: object) -> str:
    names = tuple(dotted(cls) for cls in types)
    return repr(BackendSpec(name, "acme.problem:Problem", names, **fields))


def plugin_returning(answer: object) -> object:
    class Plugin:
        @hookimpl
        def influence_backends(self):
            return answer

    return Plugin()


def fake_torch_module() -> object:
    base = type("Module", (), {"__module__": "torch.nn.modules.module"})
    return type("Linear", (base,), {"__module__": "torch.nn.modules.linear"})()


# Finding


def test_model_is_served_by_an_installed_plugin(install_backend):
    install_backend("acme", spec_text("acme", Model))
    spec = Registry().for_model(Model())
    assert spec == BackendSpec("acme", "acme.problem:Problem", (dotted(Model),))


def test_torch_backend_is_found_through_its_entry_point(install):
    install("influence-core", "influence_torch.plugin")
    registry = Registry()
    spec = registry.for_model(fake_torch_module())
    assert (spec.name, spec.model_types) == ("torch", (MODULE,))
    assert registry.names() == ("torch",)


def test_torch_backend_is_installed():
    if not importlib.metadata.entry_points(group=GROUP, name="torch"):
        pytest.skip("influence-core is not installed; this is its source tree")
    registry = Registry()
    assert registry.for_model(fake_torch_module()) == registry.named("torch")
    pytest.importorskip("torch", reason="the factory needs torch")
    assert registry.named("torch").load().__name__ == "TorchProblem"


def test_subclass_is_served(install_backend):
    install_backend("acme", spec_text("acme", Base))
    assert Registry().for_model(Special()).name == "acme"


def test_nearest_class_wins(install_backend):
    install_backend("far", spec_text("far", Base))
    install_backend("near", spec_text("near", Model))
    registry = Registry()
    assert registry.for_model(Special()).name == "near"
    assert registry.for_model(Base()).name == "far"


def test_plugin_may_declare_several_backends(install_backend):
    install_backend("acme", f"[{spec_text('b', Model)}, {spec_text('a', Base)}]")
    registry = Registry()
    assert registry.names() == ("a", "b")
    assert registry.for_model(Model()).name == "b"


def test_plugin_may_declare_nothing(install_backend):
    install_backend("acme", "[]")
    assert Registry().names() == ()


def test_name_chooses_whatever_the_model(install_backend):
    install_backend("acme", spec_text("acme", Base))
    install_backend("other", spec_text("other", Model))
    assert Registry().named("acme").name == "acme"


def test_name_chooses_between_two_claimants(install_backend):
    install_backend("acme", spec_text("a", Model))
    install_backend("other", spec_text("b", Model))
    assert Registry().named("b").name == "b"


# Nothing found


def test_no_backend_says_what_is_installed(install_backend):
    install_backend("acme", spec_text("acme", Model, requires="pip install acme"))
    with pytest.raises(BackendNotFoundError) as caught:
        Registry().for_model(Base())
    message = str(caught.value)
    assert f"got `{dotted(Base)}`" in message
    assert "Installed: 'acme' of acme 1.0" in message
    assert dotted(Model) in message
    assert "pip install acme" in message
    assert "install a distribution" in message
    assert isinstance(caught.value, LookupError)


def test_no_plugin_at_all_suggests_to_install_the_core(site):
    with pytest.raises(BackendNotFoundError, match="pip install -e"):
        Registry().for_model(Model())


def test_class_instead_of_instance_is_pointed_out(install_backend):
    install_backend("acme", spec_text("acme", Model))
    with pytest.raises(BackendNotFoundError, match=r"the class .*Model` itself") as caught:
        Registry().for_model(Model)
    assert "pass an instance" in str(caught.value)


def test_unknown_name_says_what_is_installed(install_backend):
    install_backend("acme", spec_text("acme", Model))
    with pytest.raises(BackendNotFoundError, match="`backend='acne'`") as caught:
        Registry().named("acne")
    assert "'acme' of acme 1.0" in str(caught.value)


# Conflicts


def test_two_claimants_are_both_named(install_backend):
    install_backend("acme", spec_text("a", Base))
    install_backend("other", spec_text("b", Base))
    with pytest.raises(BackendConflictError) as caught:
        Registry().for_model(Model())
    message = str(caught.value)
    assert "'a' of acme 1.0" in message
    assert "'b' of other 1.0" in message
    assert "`backend='a'` or `backend='b'`" in message
    assert dotted(Base) in message


def test_nearer_claimant_avoids_the_conflict(install_backend):
    install_backend("acme", spec_text("a", Base))
    install_backend("other", spec_text("b", Base))
    install_backend("third", spec_text("c", Model))
    assert Registry().for_model(Model()).name == "c"


def test_two_backends_of_one_name_are_a_conflict(install_backend):
    install_backend("acme", spec_text("twin", Base))
    install_backend("other", spec_text("twin", Model))
    with pytest.raises(BackendConflictError, match=r"acme 1\.0.* and .*other 1\.0"):
        Registry().named("twin")


def test_claimants_of_one_name_cannot_be_chosen_by_name(install_backend):
    install_backend("acme", spec_text("twin", Model, requires="pip install acme"))
    install_backend("other", spec_text("twin", Model))
    with pytest.raises(BackendConflictError, match="Uninstall all but one") as caught:
        Registry().for_model(Model())
    assert "`backend='twin'`" not in str(caught.value)


def test_equal_specifications_are_no_conflict(install_backend):
    install_backend("acme", spec_text("acme", Model))
    install_backend("acme-renamed", spec_text("acme", Model))
    registry = Registry()
    assert registry.for_model(Model()) == registry.named("acme")


# Broken plug-ins

BROKEN = {
    "fails to import": ("import a_library_that_is_missing", "ModuleNotFoundError"),
    "raises while it is imported": ("1 / 0", "ZeroDivisionError"),
    "misspelt hook": (
        """
        from influence_core.plugins import hookimpl

        @hookimpl
        def influence_backend():
            return []
        """,
        "unknown hook 'influence_backend'",
    ),
    "hook with an argument": (
        """
        from influence_core.plugins import hookimpl

        @hookimpl
        def influence_backends(model):
            return []
        """,
        r"Argument\(s\) {'model'}",
    ),
    "undecorated hook": ("def influence_backends(): return []", "hookimpl"),
    "hook that raises": (
        """
        from influence_core.plugins import hookimpl

        @hookimpl
        def influence_backends():
            raise RuntimeError("no licence")
        """,
        "raised RuntimeError: no licence",
    ),
    "invalid specification": (
        """
        from influence_core.plugins import BackendSpec, hookimpl

        @hookimpl
        def influence_backends():
            return BackendSpec("broken", "module.attribute", ("a.B",))
        """,
        "module:attribute",
    ),
    "wrong return type": (
        """
        from influence_core.plugins import hookimpl

        @hookimpl
        def influence_backends():
            return ["torch"]
        """,
        r"got \['torch'\]",
    ),
    "returns nothing": (
        """
        from influence_core.plugins import hookimpl

        @hookimpl
        def influence_backends():
            pass
        """,
        "got None",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_plugin_is_skipped_and_its_reason_kept(install, install_backend, source, reason):
    install("broken", "broken_plugin", source)
    install_backend("acme", spec_text("acme", Model))
    registry = Registry()
    with pytest.warns(PluginWarning, match=reason) as warned:
        assert registry.for_model(Model()).name == "acme"
    assert "broken 1.0 (entry point `broken_plugin = broken_plugin`)" in str(warned[0].message)
    with pytest.raises(BackendNotFoundError, match=f"Skipped: broken 1.0.*{reason}"):
        registry.for_model(Base())


def test_plugin_for_another_api_is_skipped(install_backend):
    install_backend("acme", spec_text("acme", Model, api_version=API_VERSION + 1))
    registry = Registry()
    with pytest.warns(PluginWarning, match="upgrade influence-core"):
        assert registry.names() == ()
    with pytest.raises(BackendNotFoundError, match=r"One would, but was skipped: acme 1\.0"):
        registry.for_model(Special())
    with pytest.raises(BackendNotFoundError, match=r"It was skipped: acme 1\.0"):
        registry.named("acme")
    with pytest.raises(BackendNotFoundError) as caught:
        registry.for_model(Base())
    assert "One would" not in str(caught.value)


def test_plugin_for_an_older_api_is_to_be_upgraded(install_backend):
    install_backend("acme", spec_text("acme", Model, api_version=API_VERSION - 1))
    with pytest.warns(PluginWarning, match="upgrade that plug-in"):
        assert Registry().names() == ()


def test_fallback_past_a_skipped_nearer_backend_warns(install_backend):
    install_backend("acme", spec_text("acme", Model, api_version=API_VERSION + 1))
    install_backend("general", spec_text("general", Base))
    registry = Registry()
    with pytest.warns(PluginWarning, match="was skipped, acme"):
        registry.names()
    with pytest.warns(PluginWarning, match="chose 'general' .* nearer class was skipped, acme"):
        assert registry.for_model(Model()).name == "general"
    assert registry.for_model(Base()).name == "general"


def test_warning_turned_into_an_error_leaves_the_registry_usable(install, install_backend):
    install("broken", "broken_plugin", "1 / 0")
    install_backend("acme", spec_text("acme", Model))
    registry = Registry()
    with pytest.raises(PluginWarning):
        registry.for_model(Model())
    assert registry.for_model(Model()).name == "acme"


# Loading


def test_installed_plugins_are_loaded_at_the_first_lookup(install_backend):
    install_backend("acme", spec_text("acme", Model))
    registry = Registry()
    registry.register(plugin_returning([]))
    assert "plugin_of_acme" not in sys.modules
    registry.names()
    assert "plugin_of_acme" in sys.modules


def test_threads_load_once(install):
    install(
        "acme",
        "slow_plugin",
        f"""
        import time
        from influence_core.plugins import BackendSpec, hookimpl

        calls = []

        @hookimpl
        def influence_backends():
            calls.append(1)
            time.sleep(0.1)
            return {spec_text("acme", Model)}
        """,
    )
    registry, start = Registry(), threading.Barrier(8)

    def look_up(_: int) -> str:
        start.wait()
        return registry.for_model(Model()).name

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look_up, range(8))) == ["acme"] * 8
    assert len(sys.modules["slow_plugin"].calls) == 1


def test_plugin_may_look_up_while_it_is_imported(install):
    install(
        "acme",
        "curious_plugin",
        f"""
        from influence_core.plugins import BackendSpec, default_registry, hookimpl

        before = default_registry().names()

        @hookimpl
        def influence_backends():
            return {spec_text("acme", Model)}
        """,
    )
    assert run_with_site("names = default_registry().names(); assert 'acme' in names") == ""


def test_interrupted_loading_begins_anew(install):
    install(
        "acme",
        "interrupted_plugin",
        f"""
        from influence_core.plugins import BackendSpec, hookimpl

        interruptions = [KeyboardInterrupt]

        @hookimpl
        def influence_backends():
            if interruptions:
                raise interruptions.pop()
            return {spec_text("acme", Model)}
        """,
    )
    registry = Registry()
    with pytest.raises(KeyboardInterrupt):
        registry.names()
    assert registry.names() == ("acme",)


def test_recognising_a_torch_module_imports_no_torch(install):
    install("influence-core", "influence_torch.plugin")
    program = f"""
assert "influence_torch.plugin" not in sys.modules
base = type("Module", (), {{"__module__": "torch.nn.modules.module"}})
assert find_backend(type("Net", (base,), {{}})()).model_types == ({MODULE!r},)
assert "influence_torch.plugin" in sys.modules
assert "torch" not in sys.modules
"""
    assert run_with_site(program) == ""


def run_with_site(program: str) -> str:
    """Run in a new interpreter with this one's path; return what it says on stderr."""
    start = "import sys; from influence_core.plugins import default_registry, find_backend\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", start + program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stderr


# The factory


def test_factory_is_imported_and_returned(site):
    (site / "acme_problem.py").write_text("class Problem: pass")
    factory = BackendSpec("acme", "acme_problem:Problem", ("acme.Model",)).load()
    assert (factory.__module__, factory.__qualname__) == ("acme_problem", "Problem")


def test_bundled_backend_without_its_library_is_absent_until_it_is_named(install_backend, site):
    (site / "bundled_problem.py").write_text("import acme_that_is_missing")
    hint = 'pip install "influence-core[acme]"'
    spec = BackendSpec("acme", "bundled_problem:Problem", ("acme.Model",), requires=hint)
    install_backend("influence-core", repr(spec))
    registry = Registry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.named("acme") == spec
    with pytest.raises(BackendImportError, match=r"influence-core\[acme\]") as caught:
        registry.named("acme").load()
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == "acme_that_is_missing"


def test_message_of_a_backend_about_its_library_is_kept(site):
    (site / "own_message.py").write_text(
        "from influence_core.errors import BackendImportError\n"
        "def __getattr__(name): raise BackendImportError('install acme 3')\n"
    )
    with pytest.raises(BackendImportError, match=r"^install acme 3$"):
        BackendSpec("acme", "own_message:Problem", ("acme.Model",)).load()


@pytest.mark.parametrize(
    ("factory", "got"),
    [
        ("acme_problem:Problme", "names None"),
        ("acme_problem:version", "names 3"),
    ],
)
def test_factory_that_cannot_be_called(site, factory, got):
    (site / "acme_problem.py").write_text("version = 3")
    with pytest.raises(PluginError, match=got):
        BackendSpec("acme", factory, ("acme.Model",)).load()


def test_errors_of_the_factory_module_are_not_disguised(site):
    (site / "faulty_problem.py").write_text("import os; os.no_such_function()")
    with pytest.raises(AttributeError, match="no_such_function"):
        BackendSpec("acme", "faulty_problem:Problem", ("acme.Model",)).load()


# Specifications


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 3),
        ("factory", "module.attribute"),
        ("factory", "module:"),
        ("factory", print),
        ("model_types", MODULE),
        ("model_types", [MODULE]),
        ("model_types", ()),
        ("model_types", (Model,)),
        ("model_types", ("Module",)),
        ("api_version", "1"),
        ("api_version", True),
        ("requires", ["torch"]),
    ],
)
def test_field_of_the_wrong_kind_is_refused(field, value):
    fields = {"name": "acme", "factory": "acme:Problem", "model_types": (MODULE,)} | {field: value}
    with pytest.raises(PluginError, match=rf"`BackendSpec\({field}=\.\.\.\)` must be"):
        BackendSpec(**fields)


def test_plugin_that_says_nothing_was_written_for_the_first_api():
    assert BackendSpec("acme", "acme:Problem", (MODULE,)).api_version == 1


# Registering by hand


def test_registered_plugin_is_found_and_forgotten(site):
    registry, plugin = Registry(), plugin_returning(BackendSpec("hand", "a:b", (dotted(Model),)))
    registry.register(plugin)
    registry.register(plugin)
    assert registry.for_model(Model()) == registry.named("hand")
    registry.unregister(plugin)
    with pytest.raises(BackendNotFoundError):
        registry.named("hand")


def test_unregistering_leaves_the_installed_twin(install_backend):
    install_backend("acme", spec_text("acme", Model))
    registry = Registry()
    plugin = plugin_returning(registry.named("acme"))
    registry.register(plugin)
    registry.unregister(plugin)
    assert registry.names() == ("acme",)


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (object(), "no hook"),
        (plugin_returning(3), "got 3"),
        (plugin_returning(BackendSpec("old", "a:b", (MODULE,), api_version=0)), "upgrade"),
    ],
)
def test_registering_a_broken_plugin_raises(site, plugin, reason):
    registry = Registry()
    with pytest.raises(PluginError, match=rf"`register\(plugin\)`.*{reason}"):
        registry.register(plugin)
    assert registry.names() == ()


def test_find_backend_asks_the_default_registry():
    spec = BackendSpec("by-hand", "a:b", (dotted(Model),))
    plugin = plugin_returning(spec)
    default_registry().register(plugin)
    try:
        assert find_backend(Model()) == find_backend(None, "by-hand") == find_backend(None, spec)
    finally:
        default_registry().unregister(plugin)
    with pytest.raises(BackendError):
        find_backend(Model())


# The example


def test_example_passes_its_own_tests(install):
    example = Path(__file__).parents[2] / "examples" / "plugin"
    install("influence-explicit", "influence_explicit.plugin")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(example), *sys.path])}
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *options, str(example / "tests")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
