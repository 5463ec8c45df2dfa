"""What every protocol of conversations shares: tools, the form of an answer, its prompt, its parts.

A protocol turns its body into a `Conversation`. `prepare` makes the prompt and the form of the
answer. An `AnswerReader` turns the answer's text into thoughts, content and calls, which the
protocol sends in its own words.
"""
