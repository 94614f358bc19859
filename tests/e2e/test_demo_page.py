"""A newcomer's path through the demo page, and what people with fewer permissions see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from playwright.sync_api import Route, expect

from tests.e2e.conftest import OpenWindow, membership, organization_id, titles_in
from tests.tenant_tables import permissions_of

Connection = psycopg.Connection[Any]


def test_one_persons_changes_appear_at_once_in_another_window(window: OpenWindow, database: Connection) -> None:
    ada, cleo = window().open().sign_in("Ada Winter"), window().open().sign_in("Cleo Santos")
    for each in (ada, cleo):
        expect(each.member("Ada Winter")).to_contain_text("online")
        expect(each.member("Cleo Santos")).to_contain_text("online")
        expect(each.page.locator("#present-count")).to_have_text("2 online")

    cleo.create("Apollo")
    expect(ada.titles.first).to_have_text("Apollo")
    expect(ada.page.locator("#status")).to_have_text("Apollo was added.")

    ada.rename("Apollo", "Artemis")
    expect(cleo.project("Artemis")).to_be_visible()
    cleo.project("Artemis").get_by_role("button", name="Archive").click()
    expect(ada.project("Artemis").locator("[data-slot=status]")).to_have_text("archived")
    ada.project("Artemis").get_by_role("button", name="Restore").click()
    expect(cleo.project("Artemis").get_by_role("button", name="Archive")).to_be_visible()
    expect(cleo.project("Artemis").get_by_role("button", name="Delete")).to_have_count(0)

    ada.delete("Artemis")
    expect(cleo.project("Artemis")).to_have_count(0)

    cleo.page.get_by_role("button", name="Sign out").click()
    expect(ada.page.locator("#present-count")).to_have_text("1 online")
    expect(cleo.page.get_by_role("heading", name="Sign in as a demo user")).to_be_visible()
    assert (ada.errors, cleo.errors) == ([], [])


def test_markup_in_titles_and_names_is_shown_as_text(
    window: OpenWindow, database: Connection, clerk: Callable[..., None]
) -> None:
    image = "<img src=x onerror=alert(1)>"
    clerk("user.created", id="user_mallory", first_name=image, last_name="Mallory")
    clerk("organizationMembership.created", **membership("user_mallory", "org_acme"))
    try:
        mallory = window().open().sign_in(f"{image} Mallory")
        mallory.create(image)
        expect(mallory.project(image)).to_be_visible()
        expect(mallory.member(image)).to_be_visible()
        expect(mallory.page.locator(".person")).to_contain_text(image)
        expect(mallory.page.locator("img[src=x]")).to_have_count(0)
        mallory.rename(image, f"{image} twice")
        expect(mallory.page.locator("#status")).to_have_text(f"{image} twice was changed.")
        assert mallory.errors == []
    finally:
        clerk("user.deleted", id="user_mallory")


def test_a_viewer_sees_no_actions_and_is_refused_when_they_are_shown(window: OpenWindow, database: Connection) -> None:
    acme = organization_id(database, "org_acme")
    before = titles_in(database, acme)
    newest = before[0]
    dee = window().open().sign_in("Dee Lindqvist")
    expect(dee.titles.first).to_have_text(newest)
    workspace = dee.page.locator(".projects")
    for act in ("Create", "Rename", "Archive", "Delete"):
        expect(workspace.get_by_role("button", name=act)).to_have_count(0)

    dee.show_all_actions()
    dee.create("Not mine to make")
    expect(dee.alert).to_contain_text("The database refused (42501): new row violates row-level security policy")
    expect(dee.alert).to_contain_text("projects:create")
    dee.rename(newest, "Not mine to name")
    expect(dee.alert).to_have_text(refusal("projects:update"))
    dee.delete(newest)
    expect(dee.alert).to_have_text(refusal("projects:delete"))
    dee.project(newest).get_by_role("button", name="Archive").click()
    expect(dee.alert).to_have_text(refusal("projects:update"))
    assert titles_in(database, acme) == before


def refusal(permission: str) -> str:
    return f"The database changed no row. This requires the permission {permission}, which you do not have in Acme."


def test_an_owner_without_a_second_factor_can_only_read_and_sees_why(window: OpenWindow) -> None:
    ada = window().open().sign_in("Ada Winter", second_factor=False)
    expect(ada.page.locator("#role")).to_have_text("owner")
    expect(ada.page.locator("#limited")).to_contain_text("Acme requires a second factor of the role owner")
    resources: dict[str, list[str]] = {}
    for permission in sorted({"members:read"} | permissions_of("viewer")):
        resource, _, action = permission.partition(":")
        resources.setdefault(resource, []).append(action)
    lines = [f"{resource}: {', '.join(actions)}" for resource, actions in resources.items()]
    expect(ada.page.locator("#permissions li")).to_have_text(lines)
    expect(ada.page.get_by_role("button", name="Rename")).to_have_count(0)
    expect(ada.page.get_by_role("heading", name="Audit log")).to_have_count(0)


def test_owners_see_the_audit_log_live(window: OpenWindow, database: Connection, clerk: Callable[..., None]) -> None:
    ada, cleo = window().open().sign_in("Ada Winter"), window().open().sign_in("Cleo Santos")
    newest = ada.page.locator("#audit-entries > li").first
    expect(ada.page.locator("#audit-entries > li")).to_have_count(8)
    expect(cleo.page.get_by_role("heading", name="Audit log")).to_have_count(0)

    cleo.create("Apollo")
    expect(newest).to_contain_text("Cleo Santos created project Apollo")
    ada.rename("Apollo", "Gemini")
    expect(newest).to_contain_text("Ada Winter renamed project Apollo to Gemini")
    ada.project("Gemini").get_by_role("button", name="Archive").click()
    expect(newest).to_contain_text("Ada Winter archived project Gemini")
    database.execute("update public.projects set description = 'To the moon' where title = 'Gemini'")
    expect(newest).to_contain_text("The system changed description of project Gemini")
    ada.delete("Gemini")
    expect(newest).to_contain_text("Ada Winter deleted project Gemini")

    clerk("user.created", id="user_zoe_lang", first_name="Zoe", last_name="Lang")
    clerk("organizationMembership.created", **membership("user_zoe_lang", "org_acme"))
    expect(newest).to_contain_text("Clerk added Zoe Lang as member")
    clerk("organizationMembership.updated", **membership("user_zoe_lang", "org_acme", role="org:viewer"))
    expect(newest).to_contain_text("Clerk changed the role of Zoe Lang from member to viewer")
    clerk("user.deleted", id="user_zoe_lang")
    expect(newest).to_contain_text("Clerk removed a former member")
    assert (ada.errors, cleo.errors) == ([], [])


def test_the_audit_log_names_impersonators_and_labels_unknown_actors(window: OpenWindow, database: Connection) -> None:
    acme = organization_id(database, "org_acme")
    database.execute(
        """
        insert into public.audit_logs (organization_id, user_id, actor, impersonator, action, resource_type, resource_id)
        select %s, case when who.is_ada then p.id else who.user_id end, who.actor, who.impersonator, 'client.exported', 'report', '7'
        from (values
          (true, null::uuid, null, 'user_support'),
          (false, gen_random_uuid(), null, null),
          (false, null, null, null),
          (false, null, 'import 3', null)
        ) as who (is_ada, user_id, actor, impersonator)
        cross join public.profiles as p where p.clerk_user_id = 'user_ada'
        """,
        [acme],
    )
    ada = window().open().sign_in("Ada Winter")
    entries = ada.page.locator("#audit-entries")
    for who in ("user_support (on behalf of Ada Winter)", "A former member", "An erased person", "import 3"):
        expect(entries).to_contain_text(f"{who} logged client.exported about report 7")


def test_the_audit_log_shows_who_asked_to_invite_and_to_remove(window: OpenWindow, database: Connection) -> None:
    acme = organization_id(database, "org_acme")
    database.execute(
        """
        insert into public.audit_logs (organization_id, user_id, action, resource_type, metadata)
        select %s, ada.id, r.action, r.resource, r.metadata || jsonb_build_object('user_id', dee.id)
        from (values
          ('invitation.requested', 'invitation', '{"role": "viewer"}'::jsonb), ('member.removal_requested', 'member', '{"role": "viewer"}')
        ) as r (action, resource, metadata)
        cross join public.profiles as ada cross join public.profiles as dee
        where ada.clerk_user_id = 'user_ada' and dee.clerk_user_id = 'user_dee'
        """,
        [acme],
    )
    entries = window().open().sign_in("Ada Winter").page.locator("#audit-entries")
    expect(entries).to_contain_text("Ada Winter asked to invite a person as viewer")
    expect(entries).to_contain_text("Ada Winter asked to remove Dee Lindqvist")


def test_a_webhook_adds_a_member_without_a_reload(window: OpenWindow, clerk: Callable[..., None]) -> None:
    ada = window().open().sign_in("Ada Winter")
    expect(ada.member("Dee Lindqvist")).to_be_visible()
    clerk("user.created", id="user_fay", first_name="Fay", last_name="Novak")
    try:
        clerk("organizationMembership.created", **membership("user_fay", "org_acme"))
        expect(ada.member("Fay Novak")).to_contain_text("member")
    finally:
        clerk("user.deleted", id="user_fay")
    expect(ada.member("Fay Novak")).to_have_count(0)


def test_a_changed_role_changes_the_persons_buttons(window: OpenWindow, clerk: Callable[..., None]) -> None:
    cleo = window().open().sign_in("Cleo Santos")
    renames = cleo.page.get_by_role("button", name="Rename")
    expect(renames.first).to_be_visible()
    try:
        clerk("organizationMembership.updated", **membership("user_cleo", "org_acme", role="org:viewer"))
        expect(cleo.page.locator("#role")).to_have_text("viewer")
        expect(renames).to_have_count(0)
    finally:
        clerk("organizationMembership.updated", **membership("user_cleo", "org_acme", role="org:member"))
    expect(renames.first).to_be_visible()


def test_show_more_loads_pages_until_all_projects_are_shown(window: OpenWindow, database: Connection) -> None:
    acme = organization_id(database, "org_acme")
    database.execute(
        "insert into public.projects (organization_id, title, created_at)"
        " select %s, 'Bulk ' || n, '2026-01-01' from generate_series(1, 15) as n",
        [acme],
    )
    cleo = window().open().sign_in("Cleo Santos")
    expected = titles_in(database, acme)
    more = cleo.page.get_by_role("button", name="Show more")
    for shown in range(20, len(expected), 10):
        more.click()
        expect(cleo.titles).to_have_text(expected[:shown])
    more.click()
    expect(cleo.titles).to_have_text(expected)
    expect(more).to_have_count(0)
    expect(cleo.page.locator("#project-count")).to_have_text(f"{len(expected)} in total")


def test_with_a_real_clerk_the_page_names_it_and_explains_how_to_get_a_token(window: OpenWindow) -> None:
    visitor = window()

    def with_real_clerk(route: Route) -> None:
        config = route.fetch().json()
        route.fulfill(json=config | {"clerk_issuer": "https://brave-gnu-1.clerk.accounts.dev"})

    visitor.page.route("**/demo/config.json", with_real_clerk)
    visitor.open()
    expect(visitor.page.get_by_role("heading", name="Sign in on your own page")).to_be_visible()
    expect(visitor.page.locator("#real-clerk")).to_contain_text("https://brave-gnu-1.clerk.accounts.dev")
    expect(visitor.page.locator("#real-clerk")).to_contain_text("await Clerk.session.getToken()")
    expect(visitor.page.get_by_role("heading", name="Sign in as a demo user")).to_be_hidden()
    assert visitor.errors == []
