"""`cm3 serve`: the model behind OpenAI's interface."""

from pathlib import Path
from typing import Annotated

import typer

from cm3.cli.common import Device, Model, load

EXTRA = "cm3 serve needs fastapi, uvicorn and prometheus-client: pip install 'cm3leon[serve]'"


def serve(
    host: Annotated[str, typer.Option(help="Where to listen; others than this machine only with keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file with API keys of 16 characters or more, one a line; # begins a comment.")
    ] = None,
    block_list: Annotated[Path | None, typer.Option(help='Terms that prompts may not have: "category: term".')] = None,
    no_nudity: Annotated[
        bool, typer.Option("--no-nudity", help="Refuse images in which NudeNet finds any (extra nudenet).")
    ] = False,
    images: Annotated[int, typer.Option(help="Images of one request, sent or drawn, at most.", min=1, max=64)] = 8,
    queue: Annotated[int, typer.Option(help="Images under way or waiting, of all; more get 429.", min=1)] = 64,
    seconds: Annotated[
        float, typer.Option(help="For a request, with its waiting, and for its answer to be taken.", min=0.1)
    ] = 60.0,
    body: Annotated[int, typer.Option(help="Bytes of a request, at most.", min=1000)] = 20_000_000,
    max_pixels: Annotated[int, typer.Option(help="Of an image that is sent.", min=1)] = 4_000_000,
    arrival: Annotated[float, typer.Option(help="Seconds in which a request has to arrive.", min=0.1)] = 30.0,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the decoding step: faster, after seconds.")
    ] = False,
    device: Device = "auto",
    model: Model = "emoji",
) -> None:
    """Serve the model over HTTP with OpenAI's interface: /v1/images/generations, /v1/images/edits,
    /v1/chat/completions, /v1/models; /health and /metrics."""
    try:
        from cm3.serving.access import is_local, read_keys
    except ImportError as error:
        raise ValueError(f"{EXTRA} ({error.name} is missing)") from error
    if not is_local(host) and api_key_file is None:
        raise ValueError(f"on {host} others could use it too: give --api-key-file, or listen on 127.0.0.1")
    for path in (api_key_file, block_list):
        if path is not None and not path.is_file():
            raise ValueError(f"{path}: there is no such file")
    keys = [] if api_key_file is None else read_keys(api_key_file)
    try:
        import uvicorn

        from cm3.engine.thread import reserve_threads
        from cm3.serving.admission import Limits
        from cm3.serving.app import make_app
        from cm3.serving.connection import settings
        from cm3.serving.memory import return_freed_memory
        from cm3.serving.safety import BlockList, NudityFilter, Safety
    except ImportError as error:
        raise ValueError(f"{EXTRA} ({error.name} is missing)") from error
    try:
        seen = [NudityFilter()] if no_nudity else []
    except ImportError as error:
        raise ValueError(f"--no-nudity needs nudenet: pip install 'cm3leon[nudenet]' ({error})") from error
    safety = Safety([] if block_list is None else [BlockList.read(block_list)], seen)
    threads = reserve_threads()
    return_freed_memory()
    pipeline = load(model, max_pixels, device, compile)
    limits = Limits(body, images, queue, seconds, max_pixels, arrival)
    app = make_app(pipeline, Path(model).name, limits, safety, keys, threads)
    print(f"{Path(model).name} on http://{host}:{port}", flush=True)
    uvicorn.run(**settings(app, limits), host=host, port=port, log_level="warning")
