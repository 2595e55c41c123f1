"""Multiple choice and open questions, each described by one small task file."""
