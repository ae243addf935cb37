local sum = 0
for round = 1, tonumber(arg[1]) do
    local t, map = {}, {}
    for i = 1, 100000 do t[i] = (i * 7919 + round) % 100003 end
    table.sort(t)
    for i = 1, #t do map["k" .. t[i] % 5000] = (map["k" .. t[i] % 5000] or 0) + i end
    for _, x in pairs(map) do sum = (sum + x) % 1000000007 end
end
print(sum)
