#!/bin/sh
# Inserts, an index, joins and sorts in memory.
exec sqlite3 :memory: "
create table t(a integer primary key, b integer, c text);
with recursive n(x) as (values(1) union all select x + 1 from n where x < $1 * 8000)
    insert into t select x, x * 7919 % 10007, 'row ' || (x * 31 % 5003) from n;
create index tb on t(b);
select count(*), sum(b), max(c) from t where b between 1000 and 6000;
select u.b, count(*) from t u join t w on u.b = w.a group by u.b order by 2 desc, 1 limit 5;
select c, sum(b) s from t group by c order by s desc, c limit 5;
update t set b = b + 1 where c like 'row 1%';
select sum(b), sum(length(c)) from t;"
