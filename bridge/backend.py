"""A runtime behind the interface.

An author writes ``name``, ``probe``, ``capabilities`` and ``_load``; the rest has
defaults. ``load`` is final: it keeps the promises (availability, options, trust,
device honesty, mapped errors) for every backend alike.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bridge.capabilities import Capabilities, ThreadSafety
from bridge.device import CPU, Device
from bridge.errors import (
    BackendUnavailable,
    BridgeError,
    DeviceUnavailable,
    ErrorRule,
    InvalidModel,
    ModelError,
    ModelLoadFailed,
    OptionError,
    SilentFallback,
    UnsupportedModel,
    translate,
)
from bridge.logs import logger, native_output
from bridge.memory import resident_bytes
from bridge.model import ModelRef
from bridge.options import Options
from bridge.predictor import Predictor
from bridge.search import Pruned

__all__ = ["Availability", "Backend", "Refusal", "find_runtime"]

# What Python itself raises for damaged files, whatever the runtime.
_BROKEN = (
    ErrorRule(
        UnicodeDecodeError,
        InvalidModel,
        message="the model holds a name that is no UTF-8 text.",
        fix="The file may be damaged; export or copy it again.",
    ),
    ErrorRule(
        zipfile.BadZipFile,
        InvalidModel,
        message="the model's archive is damaged.",
        fix="Export or copy it again.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Whether a runtime can be used here, told without importing it.

    Attributes:
        installed: It can be imported, as far as the installed files tell.
        version: Its version, if installed.
        distribution: The distribution that holds it, if installed.
        reason: Why not, one sentence, if not installed.
        fix: What to type.
        warnings: Sentences about conflicts and other things that will hurt.
    """

    installed: bool
    version: str | None = None
    distribution: str | None = None
    reason: str | None = None
    fix: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a backend cannot take a model: one sentence, the fix, and the facts as data."""

    reason: str
    fix: str = ""
    detail: Mapping[str, str] = field(default_factory=dict)


def find_runtime(
    module: str,
    distributions: Sequence[str],
    extra: str | None = None,
    *,
    exclusive: bool = True,
) -> Availability:
    """Availability of an importable module, from metadata only.

    Args:
        module: Top-level module of the runtime.
        distributions: Distributions that ship this module, the preferred one first.
        extra: The extra of inference-bridge that installs it; ``None`` where none does, and
            the preferred distribution is to be installed by its own name.
        exclusive: Whether two of these distributions at once overwrite each other.
    """
    wanted = distributions[0] if extra is None else f"'inference-bridge[{extra}]'"
    fix = f"Install it with: pip install {wanted}"
    found: dict[str, str] = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        is_importable = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        is_importable = False
    if not is_importable:
        if found:
            name, version = next(iter(found.items()))
            reason = f"{name} {version} is installed, but its module '{module}' is missing"
            return Availability(installed=False, reason=reason, fix=f"Reinstall {name}.")
        return Availability(installed=False, reason=f"module '{module}' is not installed", fix=fix)
    warnings: tuple[str, ...] = ()
    if exclusive and len(found) > 1:
        both = " and ".join(f"{name} {version}" for name, version in found.items())
        clash = (
            f"{both} are installed side by side and overwrite each other's files: uninstall "
            "them all, then install one."
        )
        warnings = (clash,)
    for name, version in found.items():
        return Availability(installed=True, version=version, distribution=name, warnings=warnings)
    return Availability(installed=True, warnings=warnings)


class Backend(ABC):
    """One runtime. Instances are cheap, stateless and import nothing heavy.

    Attributes:
        name: What users write, such as ``onnxruntime``.
        options_type: Its typed options.
        device_kinds: Kinds of device it can ever use; the first that can run a model's
            format is the default.
        is_oracle: It is there to say what is right, not to be fast: a selection leaves it
            out unless it is named.
        always_isolated: Its runtime may end the process that it runs in, or cannot share one:
            ``bridge.load`` gives each predictor a process of its own, asked or not.
        is_public: Anybody can install its runtime. What is converted from its formats is not
            compared with the source where the runtime is missing and this is false, and the
            proof says so.
    """

    name: ClassVar[str]
    options_type: ClassVar[type[Options]] = Options
    device_kinds: ClassVar[tuple[str, ...]] = ("cpu",)
    is_oracle: ClassVar[bool] = False
    always_isolated: ClassVar[bool] = False
    is_public: ClassVar[bool] = True

    @abstractmethod
    def probe(self) -> Availability:
        """Installed or not, version, what to type; imports nothing heavy, never raises."""

    @abstractmethod
    def capabilities(self, device: Device) -> Capabilities:
        """What it can do on a device; imports nothing heavy."""

    @abstractmethod
    def _load(self, model: ModelRef, device: Device, options: Any) -> Predictor:
        """Loads the model; written by the author.

        Args:
            model: A model of one of the capabilities' formats, already checked.
            device: One of ``devices()``.
            options: An instance of ``options_type``.

        Returns:
            A predictor whose ``info`` says what the runtime itself reports.
        """

    def devices(self) -> tuple[Device, ...]:
        """Devices it can use here; may import the runtime. The CPU unless overridden."""
        return (CPU,)

    def default_device(self, model: ModelRef) -> Device:
        """Where a model runs when nothing is said."""
        kinds = [kind for kind in self.device_kinds if kind in model.format.devices]
        return Device(kinds[0] if kinds else self.device_kinds[0])

    def search_space(self, model: ModelRef, device: Device) -> tuple[Options | Pruned, ...]:
        """Options worth measuring for a model on a device, the most promising first.

        Called for models that are not refused; imports no runtime. ``search.combine``
        makes it from a list of values.

        Returns:
            Instances of ``options_type``, the default as the first of all, and what was
            left out, with the rule. No two of them mean the same here.
        """
        return (self.options_type(),)

    def worker_environment(self, device: Device, options: Any) -> Mapping[str, str]:
        """Variables that the process of a predictor has to start with.

        Asked of backends that are ``always_isolated``. What an ``Isolation`` names wins.

        Args:
            device: Where it will run.
            options: An instance of ``options_type``.
        """
        return {}

    def error_rules(self) -> tuple[ErrorRule, ...]:
        """Table of the runtime's exceptions, special ones first; may import the runtime."""
        return ()

    def refuse(self, model: ModelRef, device: Device) -> Refusal | None:
        """Why it cannot take this model, told without the runtime; ``None`` if it may.

        Of a composite, it is asked about the model inside: ``ModelRef.served``.
        """
        capabilities = self.capabilities(device)
        formats = capabilities.formats
        if model.format.name in formats:
            return self._refuse_signature(model, capabilities)
        return Refusal(
            f"{self.name} does not load {model.format.title}; it loads "
            f"{', '.join(sorted(formats)) or 'nothing here'}.",
            f"Use backend='{model.format.native_backend}', or convert the model.",
        )

    def _refuse_signature(self, model: ModelRef, claims: Capabilities) -> Refusal | None:
        """Why a model's tensors cannot be passed, where its bytes tell their types and dims."""
        if not claims.dtypes and claims.dynamic_dims:
            return None  # whatever the file says, it is taken
        try:
            signatures = model.facts.signatures
        except ModelError:
            return None  # a broken model is refused by name in load
        if model.signature_key is None and len(signatures) != 1:
            return None
        signature = signatures.get(model.signature_key or next(iter(signatures)))
        if signature is None:
            return None
        for spec in (*signature.inputs, *signature.outputs):
            if claims.dtypes and spec.dtype is not None and spec.dtype not in claims.dtypes:
                return Refusal(
                    f"'{spec.name}' is {spec.dtype}, which {self.name} does not take.",
                    "Use another backend, or cast it inside the model.",
                    {"tensor": spec.name, "dtype": spec.dtype.value},
                )
        for spec in signature.inputs:
            if claims.dynamic_dims or all(isinstance(item, int) for item in spec.shape or ()):
                continue
            return Refusal(
                f"input '{spec.name}' has shape {spec.shape_text}; {self.name} takes models "
                "whose dims are all fixed.",
                "Export the model with fixed sizes, or use another backend.",
                {"tensor": spec.name, "shape": spec.shape_text},
            )
        return None

    def load(
        self,
        model: ModelRef,
        *,
        device: Device | str | None = None,
        options: Options | Mapping[str, Any] | Sequence[str] | None = None,
    ) -> Predictor:
        """Loads a model; final. See ``bridge.load``, which finds model and backend.

        Raises:
            BackendUnavailable: The runtime is not installed.
            OptionError: An option is wrong.
            DeviceUnavailable: The device is not there.
            ModelError: The subclass says what is wrong with the model.
            SilentFallback: The runtime would run elsewhere than asked.
        """
        self.require()
        served = model.served
        where = Device.parse(device) if device is not None else self.default_device(served)
        context = {"backend": self.name, "model": model.name, "device": str(where)}
        try:
            chosen = self.options_type.make(options)
            if where.kind not in self.device_kinds:
                raise self.missing_device(where)
            refusal = self.refuse(served, where)
            if refusal is not None:
                raise UnsupportedModel(
                    refusal.reason,
                    fix=refusal.fix,
                    format=served.format.name,
                    **refusal.detail,
                )
            if model.signature_key and not model.format.has_signature_keys:
                raise UnsupportedModel(
                    f"the model has no signature '{model.signature_key}': "
                    f"{model.format.title} models have one, without a key.",
                    fix="Leave the signature out.",
                    wanted=model.signature_key,
                )
            if served is not model and model.declared is not None:
                raise OptionError(
                    f"a whole signature was given for {model.name}, but its format holds its own.",
                    fix="Leave the signature out.",
                )
            _check(model)
            if where != CPU and where not in self._reported_devices():
                raise self.missing_device(where)
            capabilities = self.capabilities(where)
            before = resident_bytes()
            predictor, executor = self._loaded(served, where, chosen, capabilities)
            after = resident_bytes()
        except BridgeError as error:
            error.backend = error.backend or self.name
            error.model = error.model or model.name
            error.device = error.device or str(where)
            raise
        predictor._attach(
            dataclasses.replace(
                predictor.info,
                backend=self.name,
                format=served.format.name,
                model=model.name,
                options=chosen.to_dict(),
                resident_bytes=_growth(before, after),
            ),
            capabilities,
            self.error_rules(),
            executor,
        )
        if predictor.info.device != where:
            predictor.close()
            raise SilentFallback(
                f"asked for {where}, but {self.name} runs this model on "
                f"{predictor.info.device} ({predictor.info.provider}).",
                fix=f"Ask for device='{predictor.info.device}', or install a build of the "
                f"runtime that supports {where.kind}.",
                **context,
                wanted=str(where),
                got=str(predictor.info.device),
            )
        if served is model:
            return predictor
        try:
            return _fronted(model, predictor, capabilities, before)
        except BridgeError as error:
            predictor.close()
            error.backend = error.backend or self.name
            error.model = error.model or model.name
            raise
        except BaseException:
            predictor.close()
            raise

    def require(self) -> Availability:
        """The availability, or ``BackendUnavailable`` with what to type."""
        found = self.probe()
        if not found.installed:
            raise BackendUnavailable(
                f"backend '{self.name}' is not available: {found.reason}.",
                fix=found.fix,
                backend=self.name,
            )
        return found

    def _reported_devices(self) -> tuple[Device, ...]:
        try:
            return self.devices()
        except BridgeError:
            raise
        except ImportError as error:
            raise self._import_failed(error) from error
        except Exception as error:
            frame = f"{self.name} could not list its devices"
            raise translate(error, self.error_rules(), DeviceUnavailable, frame=frame) from error

    def _import_failed(self, error: ImportError) -> BackendUnavailable:
        return BackendUnavailable(
            f"backend '{self.name}' is installed, but importing it failed: {error}.",
            fix="Reinstall the runtime; 'bridge doctor' shows what is installed.",
        )

    def _loaded(
        self, model: ModelRef, device: Device, options: Options, capabilities: Capabilities
    ) -> tuple[Predictor, ThreadPoolExecutor | None]:
        executor = None
        load: Callable[..., Predictor] = self._load
        if capabilities.thread_safety is ThreadSafety.NONE:
            owner = executor = ThreadPoolExecutor(1, thread_name_prefix=f"bridge-{self.name}")

            def load(*args: Any) -> Predictor:
                return owner.submit(self._load, *args).result()

        with native_output(logger(self.name)) as printed:
            try:
                return load(model, device, options), executor
            except Exception as error:
                if executor is not None:
                    executor.shutdown(wait=False)
                if isinstance(error, BridgeError):
                    raise
                if isinstance(error, ImportError):
                    raise self._import_failed(error) from error
                # What the runtime printed often says more than what it raised.
                raise translate(
                    error,
                    (*self.error_rules(), *_BROKEN),
                    ModelLoadFailed,
                    frame=f"{self.name} could not load {model.name}",
                    native_log=list(printed.lines[-20:]),
                ) from error

    def missing_device(self, device: Device) -> DeviceUnavailable:
        """The error for a device that is not in ``devices()``; override to say why."""
        there = ", ".join(str(item) for item in self.devices()) or "none"
        return DeviceUnavailable(
            f"{self.name} cannot use {device} here; it can use: {there}.",
            fix="'bridge doctor --deep' shows what each runtime sees.",
            wanted=str(device),
            there=there,
        )


def _check(model: ModelRef) -> None:
    """Checks a model, and that inside a composite."""
    model.format.check(model)
    if model.inner is not None:
        _check(model.inner)


def _fronted(
    model: ModelRef, predictor: Predictor, claims: Capabilities, before: int | None
) -> Predictor:
    """The predictor of a composite around that of the model inside, from inside out."""
    if model.inner is None:
        return predictor
    inner = _fronted(model.inner, predictor, claims, before)
    front = model.format.front(model, inner)
    if front is inner:
        return inner
    info = dataclasses.replace(
        front.info,
        backend=inner.info.backend,
        format=model.format.name,
        model=model.name,
        options=inner.info.options,
        resident_bytes=_growth(before, resident_bytes()),
    )
    # The predictor inside sees to threads for itself.
    claims = dataclasses.replace(claims, bind=False, thread_safety=ThreadSafety.SHARED)
    front._attach(info, claims, (), None)
    return front


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)
