"""What users of the openai package do, against a server: openai_client.py BASE_URL. Any surprise is an exception."""
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
model = client.models.list().data[0].id
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
chat = dict(model=model, messages=messages, seed=5, max_tokens=20, logprobs=True, top_logprobs=3)

answer = client.chat.completions.create(**chat)
choice = answer.choices[0]
assert choice.finish_reason in ("stop", "length"), choice
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
assert len(choice.logprobs.content) == answer.usage.completion_tokens
assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in choice.logprobs.content)
assert answer.system_fingerprint.startswith("isobit-1")

again = client.chat.completions.create(**chat)
assert again.choices == answer.choices, "the same request, the same answer"

text, usage, tokens = "", None, []
for chunk in client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for c in chunk.choices:
        text += c.delta.content or ""
        tokens += c.logprobs.content if c.logprobs else []
assert text == choice.message.content and usage == answer.usage.model_copy(update={"prompt_tokens_details": usage.prompt_tokens_details})
assert tokens == choice.logprobs.content

several = client.chat.completions.create(**{**chat, "n": 3, "temperature": 0.9, "stop": ["zzzz"], "logit_bias": {"65": 2}})
assert [c.index for c in several.choices] == [0, 1, 2]

tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}
client.chat.completions.create(**chat, tools=[tool], response_format={"type": "text"})

old = client.completions.create(model=model, prompt="Once", max_tokens=5, seed=1, logprobs=2, echo=True)
assert old.choices[0].text.startswith("Once") and old.choices[0].logprobs.token_logprobs[0] is None

for call, kind in ((lambda: client.chat.completions.create(**{**chat, "temperature": -1}), openai.BadRequestError),
                   (lambda: client.chat.completions.create(**{**chat, "model": "other"}), openai.NotFoundError),
                   (lambda: client.embeddings.create(model=model, input="x"), openai.BadRequestError)):
    try:
        call()
    except kind as e:
        assert e.body["message"], e
    else:
        raise AssertionError(f"{kind.__name__} was expected")
print("ok")
