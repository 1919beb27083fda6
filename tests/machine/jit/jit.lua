-- Traces, side exits, code made at run time, FFI, coroutines, strings, garbage: all results are exact.
local bit, ffi = require("bit"), require("ffi")
local rounds = tonumber(arg[1]) or 1

local function numbers(n)
	local s, f = 1, 0
	for i = 1, n do
		s = bit.tobit(s * 69069LL + 1)
		s = bit.bxor(s, bit.rol(s, 7))
		f = f * 0.999 + (s % 1000) / 7
	end
	return s, f
end

ffi.cdef("typedef struct { int32_t key; double value; uint8_t text[12]; } record;")
local function records(n)
	local r, sum = ffi.new("record[?]", n), 0
	for i = 0, n - 1 do
		r[i].key, r[i].value = (i * 7919) % n, i / 3
		for k = 0, 11 do r[i].text[k] = (i + k) % 256 end
	end
	for i = 0, n - 1 do
		local e = r[r[i].key]
		sum = (sum + e.value * 3 + e.text[i % 12]) % 1000003
	end
	return sum
end

-- Every function is another trace; types change under those that exist.
local function made(n)
	local sum = 0
	for i = 1, n do
		local f = loadstring(("local a, b = ... local s = 0 for k = 1, 200 do s = s + a * k %% %d - b end return s"):format(i % 97 + 2))
		sum = sum + f(i, 3) + f(i + 0.5, 1)
	end
	return sum
end

local function text(n)
	local t, h = {}, {}
	for i = 1, n do
		local s = ("%x"):format(bit.band(i * 2654435, 0xffffff))
		h[s] = (h[s] or 0) + 1
		t[#t + 1] = s:reverse():gsub("0", "-")
		if #t == 64 then t = {table.concat(t):sub(-40)} end
	end
	local count = 0
	for _ in pairs(h) do count = count + 1 end
	return count, table.concat(t):sub(-24)
end

local function coroutines(n)
	local sum, all = 0, {}
	for i = 1, 50 do
		all[i] = coroutine.wrap(function() local x = i while true do x = (x * 31 + i) % 65521 coroutine.yield(x) end end)
	end
	for i = 1, n do sum = (sum + all[i % 50 + 1]()) % 1000003 end
	return sum
end

local function objects(n)
	local class = {} class.__index = class
	function class:add(x) return setmetatable({v = (self.v + x) % 99991, next = x % 100 ~= 0 and self or nil}, class) end
	local o = setmetatable({v = 0}, class)
	for i = 1, n do o = o:add(i) end
	return o.v
end

for round = 1, rounds do
	local s, f = numbers(3000000)
	local c, t = text(200000)
	print(("LUAJIT %d %.6f %d %.3f %d %s %d %d"):format(s, f, records(300000), made(1500), c, t, coroutines(1500000), objects(2000000)))
end
