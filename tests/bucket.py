"""A bucket on this machine: gcp-storage-emulator, with the versions that TensorStore asks for."""

import contextlib
import os
import socket
import threading
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

BUCKET = "bucket"
_lock = threading.Lock()


def _generation(request, storage, name):
    """Returns the number of an object's version, "0" where there is no object."""
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except NotFound:
        return "0"


def _download(request, response, storage):
    objects.download(request, response, storage)
    response["x-goog-generation"] = found = _generation(
        request, storage, request.params["object_id"]
    )
    if request.query.get("ifGenerationNotMatch") == [found]:
        response.status = HTTPStatus.NOT_MODIFIED
        response.write_file(b"", None)


def _get(request, response, storage):
    media = request.query.get("alt") == ["media"]
    (_download if media else objects.get)(request, response, storage)


def _guarded(change, name_of):
    """Makes a change only where the object is of the version that `ifGenerationMatch` wants."""

    def handle(request, response, storage):
        with _lock:
            wanted = request.query.get("ifGenerationMatch")
            if wanted and wanted != [_generation(request, storage, name_of(request))]:
                response.status = HTTPStatus.PRECONDITION_FAILED
            else:
                change(request, response, storage)

    return handle


_HANDLERS = {
    objects.download: _download,
    objects.get: _get,
    objects.insert: _guarded(objects.insert, lambda request: request.query.get("name", [""])[0]),
    objects.delete: _guarded(objects.delete, lambda request: request.params["object_id"]),
}


@contextlib.contextmanager
def serve_bucket():
    """Serves an empty bucket from memory; yields the environment that makes gs:// this one."""
    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            handlers[method] = _HANDLERS.get(handler, handler)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    serving = server.create_server("localhost", port, in_memory=True, default_bucket=BUCKET)
    serving.start()
    url = f"http://localhost:{port}"
    # One for gcsfs, which epath takes, and one for TensorStore.
    yield os.environ | {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
    serving.stop()
