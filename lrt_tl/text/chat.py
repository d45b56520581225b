"""Messages → the text that a tokenizer's chat template writes."""

from collections.abc import Mapping
from typing import Any

from lrt_tl.errors import LrtError

_ONE_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Put before a template that asks for today's date: else documents would be others tomorrow, in other splits."""


def require_chat_template(tokenizer: Any) -> None:
    """Raises:
    LrtError: the tokenizer has no chat template, or it is no tokenizer.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise LrtError(
            f"{getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__} has no chat template: give the "
            "tokenizer of a model that was trained to chat, or set tokenizer.chat_template to a Jinja template"
        )


def rendered(messages: Any, tokenizer: Any, where: str) -> str:
    """A conversation as the tokenizer's chat template writes it, with nothing to prompt an answer, and without the
    beginning of sequence.

    Raises:
        LrtError: the messages are malformed, there is no tokenizer, or its template refuses them or writes nothing;
            says `where`.
    """
    from jinja2 import TemplateError

    if tokenizer is None:
        raise LrtError(f"{where}: messages need a chat template: give chat_template=tokenizer, or --chat-template")
    _check_messages(messages, where)
    template = _ONE_DATE + tokenizer.get_chat_template()
    try:
        text: str = tokenizer.apply_chat_template(list(messages), chat_template=template, tokenize=False)
    except TemplateError as error:
        raise LrtError(f"{where}: the chat template refuses the messages: {error}") from error
    text = text.removeprefix(tokenizer.bos_token or "")
    if not text.strip():
        raise LrtError(f"{where}: the chat template writes nothing for the messages")
    return text


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise LrtError(f"{where}: messages must be a list, with one at least, not {str(messages)[:40]!r}")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise LrtError(f"{where}: message {number} must have role and content, not {str(message)[:40]!r}")
        for key in ("role", "content"):
            if not isinstance(message[key], str):
                raise LrtError(
                    f"{where}: the {key} of message {number} is of type {type(message[key]).__name__}, not a string"
                )
