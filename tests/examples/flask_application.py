"""An application of Flask's, for the WSGI server: a form, a file, a stream, an error."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask, Response, abort, redirect, request, send_file, url_for
from werkzeug.wrappers import Response as Redirection

application = Flask(__name__)


@application.get("/hello/<name>")
def hello(name: str) -> str:
    return f"hello {name}"


@application.post("/form")
def form() -> dict[str, object]:
    sent = request.files["file"]
    return {"text": request.form["text"], "name": sent.filename, "size": len(sent.read())}


@application.get("/source")
def source() -> Response:
    return send_file(__file__, mimetype="text/plain")


@application.get("/stream")
def stream() -> Response:
    def parts() -> Iterator[str]:
        for number in range(1000):
            yield f"{number}\n"

    return Response(parts(), mimetype="text/plain")


@application.get("/elsewhere")
def elsewhere() -> Redirection:
    return redirect(url_for("hello", name="from elsewhere"))


@application.get("/teapot")
def teapot() -> str:
    abort(418)
