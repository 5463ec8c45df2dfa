"""LangChain's ChatOpenAI.

pip install langchain-openai
python langchain_chat.py http://127.0.0.1:8000/v1 MODEL PROMPT
"""

import sys

from langchain_openai import ChatOpenAI

base_url, model, prompt = sys.argv[1:]
chat = ChatOpenAI(
    base_url=base_url,
    api_key="none",
    model=model,
    temperature=0,
    max_tokens=24,
    extra_body={"decoding": {"mode": "linear"}},
)
for part in chat.stream(prompt):
    sys.stdout.write(part.text)
