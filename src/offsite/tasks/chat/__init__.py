"""Conversations through the tokenizer's chat template; only the assistant's turns are learnt."""

from offsite.tasks.chat.conversations import Chat as Chat
from offsite.tasks.chat.conversations import encode_chat as encode_chat
