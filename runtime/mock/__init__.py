"""The mock OpenAI endpoint: part of the product, used by the demo, the tests and the benchmarks.

server (HTTP) -> endpoint (addresses) -> tier (what happens) -> ask, content, shapes, sse (the answer)
scenario (what a file may say) -> behaviour (what happens to request n)
main (the process), process (the process as a child)
"""
