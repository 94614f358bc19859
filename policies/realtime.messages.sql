-- Private channels. Members listen to their organizations' topics, where only the database sends, and announce themselves on
-- org:<id>:presence. Supabase owns the table and its grants. A client may join a channel if it may read a message on its topic.
create policy "listen to own organizations" on realtime.messages for select to authenticated
using (topic = any((select app.topics())::text[]));

create policy "be present in own organizations" on realtime.messages for insert to authenticated
with check (extension = 'presence' and right(topic, 9) = ':presence' and topic = any((select app.topics())::text[]));
