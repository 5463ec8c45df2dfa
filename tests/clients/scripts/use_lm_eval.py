"""lm-evaluation-harness: log-likelihoods and texts, with the server's own tokenizer."""

from common import MODEL, openai_url
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

model = LocalCompletionsAPI(
    base_url=f"{openai_url('real')}/completions", model=MODEL, tokenizer_backend="remote"
)


def asked(kind, *arguments):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


pairs = [("The capital of France is", " Paris"), ("The capital of France is", " banana")]
(paris, _), (banana, _) = model.loglikelihood([asked("loglikelihood", *p) for p in pairs])
assert banana < paris < 0
assert model.loglikelihood_rolling([asked("loglikelihood_rolling", "The sea is blue.")])[0] < 0
until = {"until": ["\n"], "max_gen_toks": 8}
assert model.generate_until([asked("generate_until", "The capital of France is", until)])[0]
