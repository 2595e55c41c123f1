"""Conversations by the tokenizer's chat template; only the assistant's turns are trained on."""

from offsite.tasks.chat.conversations import Chat as Chat
from offsite.tasks.chat.conversations import encode_chat as encode_chat
