"""What schemathesis sends, but for what would end or stop the VM that all others are for."""

import schemathesis

INSTEAD = {
    ("/vm", "state"): ("Paused", "Resumed"),
    ("/actions", "action_type"): ("SendCtrlAltDel", "FlushMetrics"),
}


@schemathesis.hook
def before_call(context, case, kwargs):
    for (path, field), (stopping, instead) in INSTEAD.items():
        if case.operation.path == path and isinstance(case.body, dict) and case.body.get(field) == stopping:
            case.body = {**case.body, field: instead}


@schemathesis.serializer("application/x-tar")
def tar(context, value):
    return value if isinstance(value, bytes) else str(value).encode()
