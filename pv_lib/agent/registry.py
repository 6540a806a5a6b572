"""The table of agents: one row each, from the agent's name to what makes it from the settings.

A new agent is a module that implements `adapter.Agent`, a row here, and its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pv_lib.agent.adapter import Agent
from pv_lib.agent.codex import Codex
from pv_lib.settings.config import Config

DEFAULT = Codex.name
AGENTS: Mapping[str, Callable[[Config], Agent]] = {
    Codex.name: Codex,
}


def make(config: Config, name: str = DEFAULT) -> Agent:
    """The agent of this name."""
    return AGENTS[name](config)
