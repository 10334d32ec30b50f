"""The server: an HTTP and WebSocket application, the thread that owns the device, and the page.

A request is admitted or refused at once, and then has a thread of its own. That thread encodes the prompt, submits it
to the engine's thread, speaks the units that come back, and hands each piece to the event loop, which writes it to the
client. The engine's thread does nothing but run the scheduler.
"""
