"""A page in the browser for one model (extra `demo`): ask about an image with and without imagining what comes next.

`comparison` answers, `scenes` has the examples, `rendering` writes results as HTML, `page` is the Gradio page, and
`server` listens.
"""
