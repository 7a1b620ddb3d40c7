"""Opens a sandbox for a person: `python -m tests.sandbox`, until Ctrl-C."""

import contextlib
import signal

from tests.sandbox import open_sandbox


def main() -> None:
    with open_sandbox() as sandbox:
        print(f"broker       {sandbox.broker.url}")
        print(f"management   {sandbox.broker.management_url}")
        print(f"event store  {sandbox.event_store_server.url()}")
        print(f"read model   {sandbox.read_model_server.url()}")
        print("Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
