"""DSPy: text by chat and Responses, a typed answer."""

import dspy
from common import KEY, MODEL, PET, PROMPT, Pet, openai_url

dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)


def lm(name, **more):
    more = {"max_tokens": 400, **more}
    return dspy.LM(f"openai/{MODEL}", api_base=openai_url(name), api_key=KEY, **more)


assert lm("real")(PROMPT)[0]
assert lm("real", model_type="responses")(PROMPT)[0]
with dspy.context(lm=lm("dspy"), adapter=dspy.JSONAdapter()):
    assert (
        dspy.Predict(dspy.Signature("question -> pet: Pet", custom_types={"Pet": Pet}))(
            question=PROMPT
        ).pet
        == PET
    )
