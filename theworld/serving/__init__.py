"""An OpenAI-compatible server for one model (extra `serve`): requests in, batches to the model, answers out.

`app` builds the web application, `engine` owns the model in a thread of its own, and `server` listens.
"""
