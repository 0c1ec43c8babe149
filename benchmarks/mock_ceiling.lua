-- The mock endpoint's ceiling: a chat request with a prompt of 500 bytes, over and over.
--   python -m runtime.mock --port 20080 &
--   wrk -t1 -c64 -d5s -s benchmarks/mock_ceiling.lua http://127.0.0.1:20080
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer any"
wrk.body = '{"model":"mock","max_tokens":16,"messages":[{"role":"user","content":"' .. string.rep("Say a word. ", 41) .. 'Now, do."}]}'
