insert into public.newsletter_signups (person_id, email)
select p.id, p.email from public.profiles as p
where p.clerk_user_id = 'user_2AdaWinterAdaWinter';
