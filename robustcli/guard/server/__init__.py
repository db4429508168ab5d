"""The guard over HTTP: predictions with alarms, health, metrics, and a page for reviewing the alarms."""

from robustcli.errors import ResourceError

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    import uvicorn  # noqa: F401
except ModuleNotFoundError as error:
    raise ResourceError(
        f"the server needs {error.name}, which is not installed",
        hint="pip install 'robustcli[serve]'",
        code="E-EXTRA",
    ) from error
