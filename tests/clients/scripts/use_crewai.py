"""CrewAI: a call, a typed answer, a crew whose agent calls a tool."""

from common import ANSWER, KEY, MODEL, PET, PROMPT, Pet, called, openai_url
from common import weather as function
from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

weather = tool("weather")(function)


def llm(name):
    return LLM(model=f"openai/{MODEL}", base_url=openai_url(name), api_key=KEY, max_tokens=400)


assert llm("real").call(PROMPT)
agent = Agent(role="r", goal="g", backstory="b", llm=llm("caller"), tools=[weather])
task = Task(description=PROMPT, expected_output="weather", agent=agent)
assert ANSWER in str(Crew(agents=[agent], tasks=[task]).kickoff())
assert called()
assert llm("typed").call(PROMPT, response_model=Pet) == PET
