"""The endpoints that OpenAI's clients know: one file each, with its body, route and wire form.

What several of them share: `fields` (body fields), `options` (from fields to what the engine is
asked for), `tools` (tools and structured output), `answer` (the wire form of chat and completions),
`frames` (drafts in streams), `usage`.
"""
