"""An address of RabbitMQ's direct reply-to that names no process there is."""

from base64 import b64encode
from uuid import uuid4

from tests.support.amqp import Client, body_of
from tests.support.deployment import Deployment
from tests.support.standing import assert_unharmed

NOBODY = b64encode(b"\x83Xv\x00\x03x@y" + bytes(12)).decode()


async def test_a_forged_direct_reply_to_harms_nobody(
    deployment: Deployment, client: Client
) -> None:
    deployment.start_both()
    for process in ("AAAA", NOBODY):
        forged = f"amq.rabbitmq.reply-to.{process}.key"
        await client.send("GrantConsent", body_of("GrantConsent", f"p-{uuid4()}"), reply_to=forged)
        for _ in range(20):
            good = await client.command("GrantConsent", f"p-{uuid4()}")
            assert good["status"] == "accepted"
        assert_unharmed(deployment)
