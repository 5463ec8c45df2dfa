"""Other people's clients: how each is set up, and what is tried with it.

The table of docs/protocols.md is made of this; `tests/test_docs.py` compares them. Versions are
those of the groups in `pyproject.toml` and of `package.json` beside this file.
"""

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODEL = "trimode-model"
"""The name under which every server of the tests serves its model."""

OPENAI = "`base_url` `http://127.0.0.1:8000/v1`, any `api_key`"
BARE = "`base_url` `http://127.0.0.1:8000`"


@dataclass(frozen=True, slots=True)
class Client:
    """A client that is run by `make clients`."""

    name: str
    package: str
    """What is installed, by which its version is found."""
    group: str
    """The environment that it is installed in: a group of `pyproject.toml` without `clients-`, or
    `npm`."""
    setting: str
    """What its user sets."""
    tried: str
    script: str | None = None
    """In `scripts/`; None: a program, which `test_programs.py` runs, or one of the examples."""

    @property
    def version(self) -> str:
        """The pinned version."""
        return _pins(self.group)[self.package]


def _pins(group: str) -> dict[str, str]:
    if group == "npm":
        return json.loads((HERE / "package.json").read_text())["dependencies"]
    with (ROOT / "pyproject.toml").open("rb") as file:
        groups = tomllib.load(file)["dependency-groups"]
    listed = groups["clients" if group == "main" else f"clients-{group}"]
    return dict(re.match(r"([\w.-]+)(?:\[.*\])?==(.*)", one).groups() for one in listed)


CLIENTS = (
    Client(
        "OpenAI (Python)", "openai", "openai-3", OPENAI,
        "chat, completions, Responses; streams, tools, typed answers, log-probabilities",
        "use_openai.py",
    ),
    Client(
        "OpenAI (npm)", "openai", "npm", "`baseURL` `http://127.0.0.1:8000/v1`, any `apiKey`",
        "chat and Responses; streams, `runTools`", "use_openai.mjs",
    ),
    Client(
        "Anthropic (Python)", "anthropic", "openai-3", f"{BARE}, any `api_key`",
        "messages, streams, counting, tools, `tool_runner`, typed answers", "use_anthropic.py",
    ),
    Client(
        "Anthropic (npm)", "@anthropic-ai/sdk", "npm",
        "`baseURL` `http://127.0.0.1:8000`, any `apiKey`",
        "messages, streams, counting, `toolRunner`", "use_anthropic.mjs",
    ),
    Client(
        "Ollama (Python)", "ollama", "openai-3", "`OLLAMA_HOST=http://127.0.0.1:8000`",
        "list, show, ps, chat, generate; streams, tools, typed answers", "use_ollama.py",
    ),
    Client(
        "Ollama (npm)", "ollama", "npm", "`host` `http://127.0.0.1:8000`",
        "list, show, chat, generate; streams, tools, typed answers", "use_ollama.mjs",
    ),
    Client(
        "OpenAI Agents SDK", "openai-agents", "openai-3",
        f"`AsyncOpenAI` with {OPENAI}",
        "Responses (its default) and chat; a tool loop, streams, `output_type`",
        "use_openai_agents.py",
    ),
    Client(
        "Vercel AI SDK", "ai", "npm",
        "`createOpenAI` or `createOpenAICompatible` with `baseURL` `http://127.0.0.1:8000/v1`",
        "Responses (its default) and chat; streams, a tool loop, typed answers", "use_ai_sdk.mjs",
    ),
    Client(
        "Pydantic AI", "pydantic-ai-slim", "openai-3",
        "`OpenAIProvider(\"http://127.0.0.1:8000/v1\", \"none\")`",
        "chat, Responses, Anthropic; tools, streams, output by tool, native, prompted",
        "use_pydantic_ai.py",
    ),
    Client(
        "Instructor", "instructor", "openai-2", f"`OpenAI` with {OPENAI}",
        "`TOOLS`, `TOOLS_STRICT`, `RESPONSES_TOOLS`, `JSON`, `JSON_SCHEMA`, `MD_JSON`, "
        "`ANTHROPIC_TOOLS`, `ANTHROPIC_JSON`; partial streams", "use_instructor.py",
    ),
    Client(
        "LangChain (Python)", "langchain-openai", "openai-3", OPENAI,
        "chat, completions, Responses, ChatAnthropic, ChatOllama; streams, tools, typed answers",
        "use_langchain.py",
    ),
    Client(
        "LangChain (npm)", "@langchain/openai", "npm",
        "`configuration: { baseURL: 'http://127.0.0.1:8000/v1' }`, any `apiKey`",
        "chat and Responses; streams, tools, typed answers", "use_langchain.mjs",
    ),
    Client(
        "LlamaIndex", "llama-index-llms-openai-like", "openai-2",
        "`api_base` `http://127.0.0.1:8000/v1`, `is_chat_model=True`, "
        "`is_function_calling_model=True`",
        "complete, streams, FunctionAgent, typed answers both ways", "use_llama_index.py",
    ),
    Client(
        "LiteLLM", "litellm", "openai-2",
        "model `openai/NAME`, `api_base` `http://127.0.0.1:8000/v1`",
        "`openai`, `hosted_vllm`, `anthropic`, `ollama_chat`, text, Responses; streams, tools, "
        "typed answers, a prompt that is too long", "use_litellm.py",
    ),
    Client(
        "huggingface_hub", "huggingface-hub", "openai-2",
        "`InferenceClient(base_url=\"http://127.0.0.1:8000\", api_key=\"none\")`",
        "chat without a model's name, streams, tools, `response_format`", "use_huggingface_hub.py",
    ),
    Client(
        "Outlines", "outlines", "openai-3",
        f"`from_openai` or `from_vllm` over `OpenAI` with {OPENAI}",
        "text, streams, types, choices, regular expressions, grammars", "use_outlines.py",
    ),
    Client(
        "smolagents", "smolagents", "openai-3",
        "`OpenAIServerModel(NAME, api_base=\"http://127.0.0.1:8000/v1\")`",
        "text, streams, ToolCallingAgent", "use_smolagents.py",
    ),
    Client(
        "Semantic Kernel", "semantic-kernel", "openai-2",
        f"`async_client` `AsyncOpenAI` with {OPENAI}",
        "chat, streams, functions called by themselves, typed answers", "use_semantic_kernel.py",
    ),
    Client(
        "AutoGen", "autogen-ext", "openai-3", f"{OPENAI}, `model_info`",
        "create, streams, an agent with a tool, typed answers", "use_autogen.py",
    ),
    Client(
        "Agno", "agno", "openai-3", f"`OpenAILike` with {OPENAI}",
        "chat, Responses, Claude; streams, a tool loop, typed answers", "use_agno.py",
    ),
    Client(
        "Haystack", "haystack-ai", "openai-3", "`api_base_url` `http://127.0.0.1:8000/v1`",
        "chat and Responses; streams, an agent with a tool, typed answers", "use_haystack.py",
    ),
    Client(
        "DSPy", "dspy", "openai-2", "`dspy.LM(\"openai/NAME\", api_base=...)`",
        "chat and Responses, a typed answer", "use_dspy.py",
    ),
    Client("guidance", "guidance", "openai-3", OPENAI, "text, JSON by a schema", "use_guidance.py"),
    Client(
        "magentic", "magentic", "openai-2", f"`OpenaiChatModel` with {OPENAI}",
        "text, streams, functions, nested types", "use_magentic.py",
    ),
    Client(
        "Mirascope", "mirascope", "openai-2",
        "`llm.register_provider(\"openai:completions\", base_url=...)`",
        "calls, streams, a tool loop, typed answers", "use_mirascope.py",
    ),
    Client(
        "Strands", "strands-agents", "openai-2", f"`client_args` with {OPENAI}",
        "an agent with a tool, typed answers", "use_strands.py",
    ),
    Client(
        "CrewAI", "crewai", "crewai", f"`LLM(\"openai/NAME\")` with {OPENAI}",
        "calls, typed answers, a crew with a tool", "use_crewai.py",
    ),
    Client(
        "lm-evaluation-harness", "lm-eval", "openai-3",
        "`local-completions` with `base_url=http://127.0.0.1:8000/v1/completions,"
        "tokenizer_backend=remote`",
        "log-likelihoods, rolling, texts until a stop", "use_lm_eval.py",
    ),
    Client(
        "Codex CLI", "@openai/codex", "npm",
        "a provider with `base_url` and `wire_api = \"responses\"`; its prompt has about 9,000 "
        "tokens", "`codex exec` with a command that it runs",
    ),
    Client(
        "opencode", "opencode-ai", "npm",
        "a provider with `@ai-sdk/openai-compatible` and `baseURL`; its prompt has about 8,000 "
        "tokens", "`opencode run`",
    ),
    Client(
        "Continue CLI", "@continuedev/cli", "npm",
        "`provider: openai`, `apiBase: http://127.0.0.1:8000/v1`", "`cn -p`",
    ),
    Client(
        "aider", "aider-chat", "aider",
        "`OPENAI_API_BASE=http://127.0.0.1:8000/v1 aider --model openai/NAME`",
        "an edit of a file",
    ),
    Client(
        "llm", "llm", "main", "[llm-models.yaml](../examples/clients/llm-models.yaml)", "a prompt"
    ),
    Client(
        "Schemathesis", "schemathesis", "main", "`/openapi.json`",
        "requests within the published schema",
    ),
)  # fmt: skip


def table() -> list[str]:
    """The rows of the page."""
    rows = ["| client | version | what to set | what was run |", "|---|---|---|---|"]
    cells = ((one.name, one.version, one.setting, one.tried) for one in CLIENTS)
    return [*rows, *(f"| {' | '.join(row)} |" for row in cells)]
