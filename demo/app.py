"""A web page for every task of the model, on this machine only unless told otherwise.

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
from demo.access import access_control
from demo.page import CSS, build
from demo.uploads import MAX_BYTES

USER = "cm3"
MIN_PASSWORD_LENGTH = 8  # characters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="an embedded model, a model folder, or a hub id")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860 on")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; others need --password")
    parser.add_argument("--share", action="store_true", help="get a public address from gradio's servers")
    parser.add_argument("--password", help=f"for visitors, as user {USER}")
    parser.add_argument("--mcp", action="store_true", help="serve the endpoints as MCP tools too")
    options = parser.parse_args()
    try:
        check_options(options)
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


def check_options(options: argparse.Namespace) -> None:
    """Raise a ValueError for a page that anybody could use, and for MCP without its package."""
    if (options.share or not is_local(options.host)) and len(options.password or "") < MIN_PASSWORD_LENGTH:
        raise ValueError(
            f"others can reach the page with --share or --host {options.host}: give --password, at least "
            f"{MIN_PASSWORD_LENGTH} characters"
        )
    if options.mcp and find_spec("mcp") is None:
        raise ValueError("--mcp needs a package: pip install mcp")


def serve(
    page: gr.Blocks, port: int | None = None, host: str = "127.0.0.1", share: bool = False, **options: Any
) -> tuple[Any, str, str]:
    """Serve the page. Further arguments go to gr.Blocks.launch. Visitors do not see internal errors."""
    return page.launch(
        server_name=host,
        server_port=port,
        share=share,
        show_error=False,
        css=CSS,
        max_file_size=MAX_BYTES,
        app_kwargs={"lifespan": access_control(any_host=share or not is_local(host))},
        **options,
    )


if __name__ == "__main__":
    main()
