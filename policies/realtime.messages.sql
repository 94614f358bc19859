-- Private channels. Members listen to their organizations' topics, on which only the database sends; on org:<id>:presence they say
-- that they are there. The table and its grants are Supabase's: a channel is joined by whoever could read a message on its topic.
create policy "listen to own organizations" on realtime.messages for select to authenticated
using (topic = any((select app.topics())::text[]));

create policy "be present in own organizations" on realtime.messages for insert to authenticated
with check (extension = 'presence' and right(topic, 9) = ':presence' and topic = any((select app.topics())::text[]));
