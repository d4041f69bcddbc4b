"""A tokenizer of one id per character."""


class Letters:
    """A tokenizer of one id a character, with a beginning-of-text letter and a chat template."""

    bos_token = "^"

    def encode(self, text, *, add_special_tokens):
        return [ord(letter) for letter in ("^" if add_special_tokens else "") + text]

    def apply_chat_template(
        self, conversation, *, tokenize, add_generation_prompt, continue_final_message=False
    ):
        return (
            "^"
            + "".join(f"<{turn['role']}>{turn['content']}" for turn in conversation)
            + "<assistant>"
        )
