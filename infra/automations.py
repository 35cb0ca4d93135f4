"""Automations that a server needs to notice what a run can't say itself; `register_automations` puts them there.

Alone: `PREFECT_API_URL=http://... python -m infra.automations`.
"""

import os
from datetime import timedelta

from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.types import SecretDict

NOTIFY_VARIABLE = "LLM_FUSE_NOTIFY_URL"
"""Takes a POST of `{"text": ...}` for every run that fails: the incoming webhook of Slack, Mattermost and others."""

SILENCE_SECONDS = 80
"""How long a run may be silent: its process speaks every 30 s (`PREFECT_FLOWS_HEARTBEAT_FREQUENCY`)."""

_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDINGS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
_RESTS = {f"prefect.flow-run.{state}" for state in ("AwaitingRetry", "Paused", "Scheduled", "Suspended")}
_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
_WEBHOOK = "llm-fuse-failures"
_BODY = """\
{{ flow.name }} {{ flow_run.name }} is {{ flow_run.state.name }}: {{ flow_run.state.message }}
{{ flow_run|ui_url }}"""


def crash_silent_runs() -> AutomationCore:
    """Marks a run Crashed when neither a heartbeat nor an end of it was heard: its worker and its process are gone."""
    return AutomationCore(
        name="Silent runs have crashed",
        description=f"A run that was not heard of for {SILENCE_SECONDS} s is marked Crashed; Retry goes on from there.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=_RUNS,
            for_each={"prefect.resource.id"},
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *_ENDINGS, *_RESTS},
            threshold=1,
            within=timedelta(seconds=SILENCE_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"no sign of life for {SILENCE_SECONDS} s: process and worker are gone"
            )
        ],
    )


def tell_failures(url: str) -> AutomationCore:
    """Posts to `url` when a run fails or crashes. The URL, often a secret, is kept in an encrypted field of a block."""
    block = CustomWebhookNotificationBlock(
        name="failures",
        url="{{ url }}",
        secrets=SecretDict({"url": url}),
        json_data={"text": "{{ subject }}\n{{ body }}"},
    )
    block_id = block.save(_WEBHOOK, overwrite=True)
    return AutomationCore(
        name="Tell about failures",
        description=f"Posts to the webhook that {NOTIFY_VARIABLE} named.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match=_RUNS,
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[SendNotification(block_document_id=block_id, subject="llm-fuse: a run failed", body=_BODY)],
    )


def register_automations(notify_url: str | None = None) -> list[str]:
    """The names of the automations that the server now has. Those of the same name keep what was set in the UI.

    notify_url: where failures are told; without, nobody is told, and a webhook registered before stays.
    """
    wanted = [crash_silent_runs(), *([tell_failures(notify_url)] if notify_url else [])]
    with get_client(sync_client=True) as client:
        for automation in wanted:
            if not client.read_automations_by_name(automation.name):
                client.create_automation(automation)
    return [automation.name for automation in wanted]


if __name__ == "__main__":
    register_automations(os.environ.get(NOTIFY_VARIABLE))
