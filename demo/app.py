"""A page to draw, edit, fill in, describe, ask and write, on this machine only unless asked otherwise.

python -m demo.app [--model emoji] [--port 7860] [--mcp] [--host 0.0.0.0 --password ...] [--share --password ...]
"""

import argparse
import os
from importlib.util import find_spec
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr

from cm3.engine.thread import EngineThread, reserve_threads
from cm3.pipeline import CM3
from cm3.serving.access import is_local
from demo.doors import doors
from demo.page import CSS, build
from demo.uploads import MAX_BYTES

USER = "cm3"
LEAST_PASSWORD = 8  # characters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="an embedded model, a model folder, or a hub id")
    parser.add_argument("--port", type=int, help="the first free one from 7860 on if not given")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; others than this machine's want one")
    parser.add_argument("--share", action="store_true", help="a public address by gradio's servers")
    parser.add_argument("--password", help=f"that visitors give, as user {USER}")
    parser.add_argument("--mcp", action="store_true", help="serve the page's work as MCP tools too")
    options = parser.parse_args()
    try:
        checked(options)
        threads = reserve_threads()
        model = CM3.from_pretrained(options.model)
        with EngineThread(model.engine, threads):
            serve(
                build(model),
                options.port,
                options.host,
                share=options.share,
                auth=(USER, options.password) if options.password else None,
                mcp_server=options.mcp,
            )
    except (OSError, ValueError, OverflowError) as error:
        raise SystemExit(f"demo: {' '.join(str(error).split())}") from None


def checked(options: argparse.Namespace) -> None:
    """Errors: ValueError for a page that anybody could use, and for MCP without its package."""
    if (options.share or not is_local(options.host)) and len(options.password or "") < LEAST_PASSWORD:
        raise ValueError(
            f"others can reach the page with --share or --host {options.host}: give --password, at least "
            f"{LEAST_PASSWORD} characters"
        )
    if options.mcp and find_spec("mcp") is None:
        raise ValueError("--mcp needs a package: pip install mcp")


def serve(
    page: gr.Blocks, port: int | None = None, host: str = "127.0.0.1", share: bool = False, **options: Any
) -> tuple[Any, str, str]:
    """Serve the page; as gr.Blocks.launch. What goes wrong inside is told to no visitor."""
    return page.launch(
        server_name=host,
        server_port=port,
        share=share,
        show_error=False,
        css=CSS,
        max_file_size=MAX_BYTES,
        app_kwargs={"lifespan": doors(any_host=share or not is_local(host))},
        **options,
    )


if __name__ == "__main__":
    main()
