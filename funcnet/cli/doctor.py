"""`funcnet doctor`: versions, known faults, and whether this machine computes right."""

from funcnet import backend
from funcnet.cli import _cache
from funcnet.cli._options import parse
from funcnet.cli._text import heading, table

__all__ = ["run"]


def _options() -> None:
    """Show versions and devices, the faults known of this jaxlib, whether the guard is active, and run small
    programs that versions of XLA have miscompiled. Exit code 1 if one of them computes wrong numbers.
    """  # noqa: D205


def run(args: list[str]) -> int:
    """The command."""
    parse(_options, args, "funcnet doctor")
    heading("this machine")
    table(("", ""), [*backend.facts().items(), ("programs kept", _cache.state())])
    faults = backend.known_faults()
    heading(f"\nfaults known of jaxlib {backend.jaxlib_version()}: {len(faults) or 'none'}")
    for fault in faults:
        cure = f"cured by the guard ({fault.flag})" if fault.flag else "cured by another version only"
        print(f"  {fault.platform}, {fault.effect}: {fault.what}; {cure}; {fault.source}")
    heading("\nprobes: small programs under jit against NumPy in float64")
    probes = backend.probes()
    table(
        ("program", "error", "allowed", ""),
        [(p.name, f"{p.error:.1e}", f"{p.limit:.0e}", "right" if p.ok else "WRONG") for p in probes],
    )
    wrong = sum(not probe.ok for probe in probes)
    seconds = sum(probe.seconds for probe in probes)
    if wrong:
        heading(f"{wrong} of {len(probes)} probes WRONG: do not trust results of this machine", "bold red")
        return 1
    heading(f"{len(probes)} of {len(probes)} probes right, in {seconds:.1f} s", "bold green")
    return 0
