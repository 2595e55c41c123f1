"""Tasks that read text: plain text, chats, multiple choice and open questions."""
