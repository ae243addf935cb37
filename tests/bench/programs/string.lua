local n, words = 0, {}
local file = io.open("/data/text")
local text = file:read("a"):sub(1, 400000)
for round = 1, tonumber(arg[1]) do
    for w in text:gmatch("%a+") do words[w] = (words[w] or 0) + 1 end
    n = n + #text:gsub("th", "TH"):upper():reverse()
end
local keys = {}
for w in pairs(words) do keys[#keys + 1] = w end
table.sort(keys)
print(n, #keys, table.concat(keys):len())
