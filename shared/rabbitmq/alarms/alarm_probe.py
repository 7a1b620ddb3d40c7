"""Finds out whether the broker takes what is published: only who publishes is told of an alarm."""

from typing import Final

from aiormq.exceptions import ChannelAccessRefused

from shared.rabbitmq.connection import Broker, Channel, Properties
from shared.rabbitmq.publishing import Outgoing, publish

_NOTHING: Final = Outgoing("", "consent.alarm-bell", b"", Properties(delivery_mode=1))
"""It reaches no queue, since only `topology` may declare one of such a name."""


class AlarmProbe:
    """Publishes nothing to nobody, over and over, on a channel of its own."""

    def __init__(self, broker: Broker, channel: Channel) -> None:
        self._broker = broker
        self._channel: Channel | None = channel

    @classmethod
    async def open(cls, broker: Broker) -> "AlarmProbe":
        """Open the channel, whose end is no loss."""
        return cls(broker, await broker.channel(confirms=True, expendable=True))

    async def ring(self) -> None:
        """Return when the broker took it; raises BrokerBlocked while it takes nothing.

        A user who may not publish to the default exchange can't find out.
        """
        self._broker.alarm.check()
        if self._channel is None:
            return
        try:
            await self._broker.alarm.unless_raised(publish(self._channel, _NOTHING))
        except ChannelAccessRefused:
            self._channel = None
